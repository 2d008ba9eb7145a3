mod pruning;

use std::sync::Arc;

use clonegate_core::format::catalog::{DatastoreEntry, TemplateEntry};

use super::*;
use crate::store::StoreConfig;

fn home() -> Store {
    Store::open(&StoreConfig::new("memory://"), &Clock::system()).unwrap()
}

fn catalog(home: &Store) -> Arc<Catalog> {
    Arc::new(Catalog::new(home.clone(), Clock::system()))
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn template(description: &str) -> TemplateEntry {
    TemplateEntry {
        description: description.to_owned(),
        versions: Vec::new(),
        published: None,
        history: Vec::new(),
        next_version: 1,
        keep_versions: None,
        created_ms: 0,
    }
}

#[tokio::test]
async fn a_name_is_given_once_changed_and_taken_away() {
    let home = home();
    let (here, there) = (catalog(&home), catalog(&home));
    let made = here.create(&name("win.11"), template("one")).await.unwrap();
    assert_eq!(made.number, 1);
    for other in [&here, &there] {
        let error = other.create(&name("win.11"), template("two")).await.unwrap_err();
        assert_eq!((error.code(), error.object()), ("name-taken", Some("win.11")));
    }
    there
        .change(&name("win.11"), |t: &mut TemplateEntry| {
            t.description.push_str(" more");
            Ok(())
        })
        .await
        .unwrap();
    let seen = here.get::<TemplateEntry>(&name("win.11")).await.unwrap();
    assert_eq!((seen.number, seen.state.description.as_str()), (2, "one more"));
    here.delete(&name("win.11"), |_: &TemplateEntry| Ok(())).await.unwrap();
    assert_eq!(there.get::<TemplateEntry>(&name("win.11")).await.unwrap_err().code(), "unknown-template");
    assert_eq!(there.create(&name("win.11"), template("new")).await.unwrap().number, 4);
    assert_eq!(here.list::<TemplateEntry>().await.unwrap().len(), 1);
}

#[tokio::test]
async fn changes_of_many_gateways_are_all_kept() {
    let home = home();
    catalog(&home).create(&name("t"), template("")).await.unwrap();
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let catalog = catalog(&home);
            tokio::spawn(async move {
                for _ in 0..8 {
                    catalog
                        .change(&name("t"), |t: &mut TemplateEntry| {
                            t.next_version += 1;
                            Ok(())
                        })
                        .await
                        .unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let after = catalog(&home).get::<TemplateEntry>(&name("t")).await.unwrap();
    assert_eq!((after.number, after.state.next_version), (33, 33));
}

#[tokio::test]
async fn of_racing_creates_one_wins() {
    let home = home();
    let tasks: Vec<_> = (0..8)
        .map(|n| {
            let catalog = catalog(&home);
            tokio::spawn(async move { catalog.create(&name("same"), template(&n.to_string())).await })
        })
        .collect();
    let mut won = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(_) => won += 1,
            Err(error) => assert_eq!(error.code(), "name-taken"),
        }
    }
    assert_eq!(won, 1);
}

#[tokio::test]
async fn a_change_that_changes_nothing_writes_nothing_and_a_refusal_stays() {
    let home = home();
    let catalog = catalog(&home);
    catalog.create(&name("t"), template("x")).await.unwrap();
    let (same, ()) = catalog.change(&name("t"), |_: &mut TemplateEntry| Ok(())).await.unwrap();
    assert_eq!(same.number, 1);
    let refuse = |_: &TemplateEntry| Err(Error::conflict("referenced", "it has clones"));
    assert_eq!(catalog.delete(&name("t"), refuse).await.unwrap_err().code(), "referenced");
    assert!(catalog.find::<TemplateEntry>(&name("t")).await.unwrap().is_some());
}

#[tokio::test]
async fn nouns_have_names_of_their_own() {
    let home = home();
    let catalog = catalog(&home);
    catalog.create(&name("x"), template("x")).await.unwrap();
    assert!(catalog.find::<DatastoreEntry>(&name("x")).await.unwrap().is_none());
}

#[tokio::test]
async fn a_batch_says_which_names_were_taken() {
    let home = home();
    catalog(&home).create(&name("b"), template("first")).await.unwrap();
    let catalog = catalog(&home);
    let batch = ["a", "b", "c"].map(|n| (name(n), template(n))).to_vec();
    let answers = catalog.create_all(batch).await;
    assert!(answers[0].is_ok() && answers[2].is_ok());
    assert_eq!(answers[1].as_ref().unwrap_err().code(), "name-taken");
    let names: Vec<String> =
        catalog.list::<TemplateEntry>().await.unwrap().iter().map(|t| t.name.to_string()).collect();
    assert_eq!(names, ["a", "b", "c"]);
}

//! `clonegate plugin show`: one plugin for people.

use serde_json::Value;

use super::remote::text;
use crate::cli::Session;
use crate::cli::failure::Failure;
use crate::cli::output::{self, Form};

pub(super) async fn show(name: &str, session: &Session) -> Result<(), Failure> {
    let plugin: Value = session.client()?.get(&format!("plugins/{}", session.segment(name))).await?;
    if session.form == Form::Json {
        output::json(&plugin);
        return Ok(());
    }
    let info = &plugin["info"];
    let list = |value: &Value| {
        let items: Vec<_> = value.as_array().map_or(&[][..], Vec::as_slice).iter().map(text).collect();
        if items.is_empty() { "-".into() } else { items.join(", ") }
    };
    let mut facts = vec![("name", text(&plugin["name"])), ("state", text(&plugin["state"]))];
    if info.is_object() {
        facts.extend([
            ("says it is", format!("{} {}", text(&info["name"]), text(&info["version"]))),
            ("what", text(&info["description"])),
            ("decides", list(&info["slots"])),
            ("digest", text(&info["digest"])),
        ]);
    }
    facts.push(("from", if plugin["embedded"] == true { "the program" } else { "installed" }.into()));
    facts.push(("rollback to", text(&plugin["previous"])));
    facts.push(("problem", text(&plugin["problem"])));
    output::facts(&facts);
    let settings = settings(&info["settings_schema"]);
    if !settings.is_empty() {
        output::line("");
        output::table(&["SETTING", "DEFAULT", "RANGE", "WHAT"], &settings);
    }
    let places = places(&plugin["links"]);
    if !places.is_empty() {
        output::line("");
        let heads = [
            "CHAIN",
            "MODE",
            "POOLS",
            "CALLS",
            "FAILED",
            "SKIPPED",
            "DIFFERED",
            "MEAN TIME",
            "MEAN FUEL",
            "MAY TAKE",
            "PROBLEM",
        ];
        output::table(&heads, &places);
    }
    Ok(())
}

/// A row for each setting that the schema has.
fn settings(schema: &Value) -> Vec<Vec<String>> {
    let row = |(name, about): (&String, &Value)| {
        let range = match (&about["minimum"], &about["maximum"]) {
            (Value::Null, Value::Null) => "-".into(),
            (least, most) => format!("{} to {}", text(least), text(most)),
        };
        let what = text(&about["description"]).split_whitespace().collect::<Vec<_>>().join(" ");
        vec![name.clone(), about.get("default").map_or("-".into(), Value::to_string), range, what]
    };
    schema["properties"].as_object().into_iter().flatten().map(row).collect()
}

/// A row for each place in a chain.
fn places(links: &Value) -> Vec<Vec<String>> {
    let row = |link: &Value| {
        let number = |key: &str| link[key].as_u64().unwrap_or_default();
        let pools: Vec<_> = link["pools"].as_array().map_or(&[][..], Vec::as_slice).iter().map(text).collect();
        let calls = number("asked");
        let mean = |key: &str| number(key).checked_div(calls);
        let limits = &link["limits"];
        let may = format!(
            "{} + {} a record, {}, {} ms",
            text(&limits["fuel"]),
            text(&limits["fuel_per_record"]),
            output::size(limits["memory_bytes"].as_u64().unwrap_or_default()),
            text(&limits["time_ms"]),
        );
        let problem = match link["breaker_open_until_ms"].as_u64() {
            Some(until) => format!("it kept failing and is not asked until {}", output::time(until)),
            None => text(&link["problem"]),
        };
        vec![
            text(&link["slot"]),
            text(&link["mode"]),
            if pools.is_empty() { "all".into() } else { pools.join(", ") },
            calls.to_string(),
            number("failed").to_string(),
            number("skipped").to_string(),
            number("differed").to_string(),
            output::or_dash(mean("us").map(|us| format!("{us} µs"))),
            output::or_dash(mean("fuel").map(|fuel| fuel.to_string())),
            may,
            problem,
        ]
    };
    links.as_array().map_or(&[][..], Vec::as_slice).iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_and_places_are_rows_with_ranges_means_and_limits() {
        let schema = json!({ "type": "object", "properties": {
            "domain": { "type": "string", "default": "rack", "description": "The label.\nOf a domain." },
            "share": { "type": "integer", "default": 40, "minimum": 1, "maximum": 100 },
        }});
        assert_eq!(
            settings(&schema),
            [["domain", "\"rack\"", "-", "The label. Of a domain."], ["share", "40", "1 to 100", "-"]]
        );
        assert!(settings(&Value::Null).is_empty());
        let limits = json!({ "fuel": 20_000_000, "fuel_per_record": 50_000, "memory_bytes": 16 << 20, "time_ms": 250 });
        let link = json!({ "slot": "placement", "mode": "shadow", "pools": ["a", "b-*"], "problem": null,
            "breaker_open_until_ms": 0, "asked": 4, "failed": 1, "skipped": 0, "differed": 2, "us": 10, "fuel": 402, "limits": limits });
        let idle = json!({ "slot": "reset", "mode": "enforce", "pools": [], "problem": "settings: $.x", "asked": 0, "limits": limits });
        let rows = places(&json!([link, idle]));
        let may = "20000000 + 50000 a record, 16.0 MiB, 250 ms";
        let until = "it kept failing and is not asked until 1970-01-01T00:00:00Z";
        assert_eq!(rows[0], ["placement", "shadow", "a, b-*", "4", "1", "0", "2", "2 µs", "100", may, until]);
        assert_eq!(rows[1], ["reset", "enforce", "all", "0", "0", "0", "0", "-", "-", may, "settings: $.x"]);
    }
}

//! `clonegate plugin new NAME`: writes a crate that builds, tests itself and does something, with nothing but this program at hand.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clonegate_core::{Error, Result};

/// What the author goes on with.
const FILES: [(&str, &str); 7] = [
    ("Cargo.toml", include_str!("scaffold/cargo.toml")),
    ("src/lib.rs", include_str!("scaffold/lib.rs")),
    (".cargo/config.toml", include_str!("scaffold/config.toml")),
    ("question.json", include_str!("scaffold/question.json")),
    ("README.md", include_str!("scaffold/README.md")),
    ("rustfmt.toml", include_str!("../../../rustfmt.toml")),
    (".gitignore", "/target\n*.wasm\n"),
];

macro_rules! sdk {
    ($($file:literal),* $(,)?) => { [$((concat!("src/", $file), include_str!(concat!("../../../sdk/src/", $file)))),*] };
}

/// The source of the SDK, file by file.
const SDK: [(&str, &str); 11] = sdk![
    "allocator.rs",
    "bindings.rs",
    "decide.rs",
    "export.rs",
    "lib.rs",
    "log.rs",
    "settings.rs",
    "testing.rs",
    "testing/record.rs",
    "types.rs",
    "wire.rs",
];

/// What stands beside it in a crate of its own.
const BESIDE: [(&str, &str); 3] = [
    ("Cargo.toml", include_str!("scaffold/sdk.toml")),
    ("wit/policy.wit", include_str!("../../../wit/policy.wit")),
    ("wit/types.wit", include_str!("../../../wit/types.wit")),
];
/// Where the bindings look for the contract in a checkout, and where it lies in a new crate.
const WIT_PATH: (&str, &str) = ("path: \"../wit\"", "path: \"wit\"");

/// Names that cargo or the compiler takes for something else.
const RESERVED: &[&str] = &[
    "abstract",
    "alloc",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "clonegate-policy",
    "const",
    "continue",
    "core",
    "crate",
    "do",
    "dyn",
    "else",
    "enum",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "gen",
    "if",
    "impl",
    "in",
    "let",
    "loop",
    "macro",
    "match",
    "mod",
    "move",
    "mut",
    "override",
    "priv",
    "proc-macro",
    "pub",
    "ref",
    "return",
    "self",
    "static",
    "std",
    "struct",
    "super",
    "test",
    "trait",
    "true",
    "try",
    "type",
    "typeof",
    "unsafe",
    "unsized",
    "use",
    "virtual",
    "where",
    "while",
    "yield",
];

/// Longest name of a plugin, bytes.
const NAME_BYTES_MAX: usize = 63;

/// Writes the crate into `parent/NAME`, all of it or nothing, and says what there is: the author's files, and the directory `sdk` when the SDK
/// came with it. With `sdk`, the crate uses the SDK of a checkout instead.
///
/// # Errors
/// `bad-plugin-name` (invalid), `exists` (exists) when there is something of that name, `no-sdk` (invalid), `cannot-write` (unavailable).
pub fn scaffold(parent: &Path, name: &str, sdk: Option<&Path>) -> Result<Vec<PathBuf>> {
    check_name(name)?;
    let root = parent.join(name);
    if fs::symlink_metadata(&root).is_ok() {
        return Err(Error::exists("exists", "there is something of that name already")
            .on(root.display().to_string())
            .hint("choose another name, or move it away"));
    }
    let (path, says) = match sdk {
        Some(directory) => (
            checkout(directory)?,
            "`--sdk` made it use the SDK of a\ncheckout of clonegate, by the path that `Cargo.toml` says.".to_owned(),
        ),
        None => (
            "sdk".to_owned(),
            format!(
                "`sdk/` is the SDK of\nclonegate {version} with the contract in `sdk/wit`; for that of another version, exchange it for the\n`sdk/` that this version's `clonegate plugin new` writes.",
                version = env!("CARGO_PKG_VERSION")
            ),
        ),
    };
    let mut files: Vec<(String, String)> = FILES
        .iter()
        .map(|(file, text)| {
            let text = text
                .replace("PLUGIN_NAME", name)
                .replace("PLUGIN_FILE", &name.replace('-', "_"))
                // A JSON text is a TOML text too.
                .replace("\"SDK_PATH\"", &serde_json::Value::from(path.as_str()).to_string())
                .replace("SDK_SAYS", &says);
            ((*file).to_owned(), text)
        })
        .collect();
    let mut written: Vec<_> = files.iter().map(|(file, _)| root.join(file)).collect();
    if sdk.is_none() {
        files.extend(sdk_files());
        written.push(root.join("sdk"));
    }
    put(&root, &files)?;
    Ok(written)
}

/// The SDK as a crate that stands alone.
fn sdk_files() -> impl Iterator<Item = (String, String)> {
    SDK.iter().chain(&BESIDE).map(|(file, text)| {
        let text = text.replace("SDK_VERSION", env!("CARGO_PKG_VERSION")).replace(WIT_PATH.0, WIT_PATH.1);
        (format!("sdk/{file}"), text)
    })
}

/// A plugin says the name of its crate, so it must do as both.
fn check_name(name: &str) -> Result<()> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let right = (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && !name.ends_with('-')
        && name.chars().all(inner);
    let shown: String = name.chars().take(NAME_BYTES_MAX + 1).collect();
    if !right {
        return Err(Error::invalid(
            "bad-plugin-name",
            format!("{shown:?} cannot be the name of a plugin and of its crate"),
        )
        .hint("use 1 to 63 of a-z, 0-9 and '-', beginning with a letter and ending with a letter or digit"));
    }
    if RESERVED.contains(&name) {
        return Err(Error::invalid("bad-plugin-name", format!("{shown:?} is a word of Rust or of its libraries"))
            .hint(format!("choose another, for instance {shown}-policy")));
    }
    Ok(())
}

/// The path of the SDK of a checkout, whatever directory the crate will lie in.
fn checkout(directory: &Path) -> Result<String> {
    let manifest = fs::read_to_string(directory.join("Cargo.toml")).unwrap_or_default();
    let found = fs::canonicalize(directory).ok().filter(|_| manifest.contains("name = \"clonegate-policy\""));
    found.and_then(|path| path.to_str().map(str::to_owned)).ok_or_else(|| {
        Error::invalid("no-sdk", "the SDK is not in this directory")
            .on(directory.display().to_string())
            .hint("it is the directory `sdk` of the source of clonegate; without --sdk the crate gets one of its own")
    })
}

/// Writes all files beside the place and moves them there, so that nobody finds half a crate.
fn put(root: &Path, files: &[(String, String)]) -> Result<()> {
    let failed =
        |e| Error::unavailable("cannot-write", "the crate cannot be written").on(root.display().to_string()).because(e);
    let name = root.file_name().unwrap_or_default().to_string_lossy();
    let partial = root.with_file_name(format!(".{name}.{}.partial", std::process::id()));
    let write = || -> io::Result<()> {
        fs::create_dir(&partial)?;
        for (file, text) in files {
            let path = partial.join(file);
            if let Some(directory) = path.parent() {
                fs::create_dir_all(directory)?;
            }
            fs::write(path, text)?;
        }
        fs::rename(&partial, root)
    };
    write().map_err(|e| {
        // What cannot be removed either is hidden, and says by its name what it is.
        let _ = fs::remove_dir_all(&partial);
        failed(e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_new_plugin_has_its_name_everywhere_and_the_sdk_with_it() {
        let parent = tempfile::tempdir().unwrap();
        let written = scaffold(parent.path(), "least-full", None).unwrap();
        assert!(written.iter().all(|path| path.exists()), "{written:?}");
        assert_eq!(names(parent.path()), ["least-full"]);
        let root = parent.path().join("least-full");
        let own = [".cargo", ".gitignore", "Cargo.toml", "README.md", "question.json", "rustfmt.toml", "sdk", "src"];
        assert_eq!(names(&root), own);
        assert_eq!(names(&root.join("sdk")), ["Cargo.toml", "src", "wit"]);
        let read = |file: &str| fs::read_to_string(root.join(file)).unwrap();
        assert!(
            read("Cargo.toml").contains("name = \"least-full\"") && read("Cargo.toml").contains("{ path = \"sdk\" }")
        );
        assert!(read("README.md").contains("least_full.wasm") && read("README.md").contains("clonegate 0.1.0"));
        assert!(read("sdk/Cargo.toml").contains("version = \"0.1.0\""));
        assert!(!read("sdk/src/bindings.rs").contains(".."), "nothing leads out of the crate");
        for (file, text) in FILES.map(|(file, _)| (file, read(file))) {
            for left in ["PLUGIN_", "SDK_"] {
                assert!(!text.contains(left), "{file}: {left}");
            }
        }
    }

    #[test]
    fn the_sdk_of_a_new_plugin_is_the_one_of_this_checkout() {
        fn below(directory: &Path, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { below(&path, found) } else { found.push(path) }
            }
        }
        let files = |top: &str, under: &str| {
            let mut found = Vec::new();
            below(&source(top).join(under), &mut found);
            let top = fs::canonicalize(source(top)).unwrap();
            let relative =
                |path: PathBuf| fs::canonicalize(path).unwrap().strip_prefix(&top).unwrap().display().to_string();
            let mut found: Vec<_> = found.into_iter().map(relative).collect();
            found.sort();
            found
        };
        let mut embedded: Vec<_> = SDK.map(|(file, _)| file.to_owned()).to_vec();
        embedded.sort();
        assert_eq!(embedded, files("sdk", "src"), "a file of the SDK is not embedded");
        let contract: Vec<_> = files("wit", "").into_iter().filter(|f| !f.starts_with("released/")).collect();
        assert_eq!(contract, ["policy.wit", "types.wit"], "a file of the contract is not embedded");
    }

    /// What a crate of its own says, the workspace says for the SDK of a checkout.
    #[test]
    fn the_sdk_of_a_new_plugin_depends_on_what_the_sdk_does() {
        let here = fs::read_to_string(source("sdk/Cargo.toml")).unwrap();
        let workspace = fs::read_to_string(source("Cargo.toml")).unwrap();
        let there = BESIDE[0].1;
        let key = |line: &str| line.split(['=', '.']).next().unwrap().trim().to_owned();
        let dependencies = |manifest: &str| -> Vec<String> {
            let (mut found, mut inside) = (Vec::new(), false);
            for line in manifest.lines().filter(|l| !l.trim().is_empty()) {
                if line.starts_with('[') {
                    inside = line.contains("dependencies]");
                } else if inside {
                    found.push(key(line));
                }
            }
            found
        };
        assert_eq!(dependencies(there), dependencies(&here));
        let version = |manifest: &str, of: &str| {
            let line = manifest.lines().find(|l| l.starts_with(&format!("{of} ="))).unwrap_or_else(|| panic!("{of}"));
            line.split('"').nth(1).unwrap().to_owned()
        };
        let same = ["edition", "rust-version", "license"].map(str::to_owned);
        for of in dependencies(there).iter().chain(&same) {
            assert_eq!(version(there, of), version(&workspace, of), "{of}");
        }
        assert!(there.contains(here.lines().find(|l| l.starts_with("description")).unwrap()));
    }

    #[test]
    fn what_cannot_be_a_crate_or_is_there_already_is_refused_and_leaves_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let refused = |name: &str, sdk: Option<&Path>| scaffold(parent.path(), name, sdk).unwrap_err().code();
        let long = "a".repeat(64);
        for wrong in
            ["", "../up", "a/b", ".", "Upper", "under_score", "dot.ted", "7up", "-a", "a-", "ä", "fn", "std", &long]
        {
            assert_eq!(refused(wrong, None), "bad-plugin-name", "{wrong:?}");
        }
        assert_eq!(refused("clonegate-policy", None), "bad-plugin-name", "it would depend on itself");
        for wrong in [source("sdk/src"), source("sdk/nowhere")] {
            assert_eq!(refused("other", Some(&wrong)), "no-sdk");
        }
        fs::create_dir(parent.path().join("there")).unwrap();
        fs::write(parent.path().join("file"), "x").unwrap();
        std::os::unix::fs::symlink("nowhere", parent.path().join("dangling")).unwrap();
        for there in ["there", "file", "dangling"] {
            assert_eq!(refused(there, None), "exists", "{there}");
        }
        assert_eq!(names(parent.path()), ["dangling", "file", "there"]);
        assert_eq!(names(&parent.path().join("there")), [""; 0]);
        let nowhere = scaffold(&parent.path().join("gone"), "new", None).unwrap_err();
        assert_eq!(nowhere.code(), "cannot-write");
    }

    #[test]
    fn a_write_that_fails_leaves_nothing() {
        let parent = tempfile::tempdir().unwrap();
        // A file where a directory is wanted.
        let files = [("a", "1"), ("a/b", "2")].map(|(file, text)| (file.to_owned(), text.to_owned()));
        assert_eq!(put(&parent.path().join("new"), &files).unwrap_err().code(), "cannot-write");
        assert_eq!(names(parent.path()), [""; 0]);
    }

    #[test]
    fn the_sdk_of_a_checkout_is_named_by_its_whole_path() {
        let parent = tempfile::tempdir().unwrap();
        let sdk = source("sdk");
        let written = scaffold(parent.path(), "of-a-checkout", Some(&sdk)).unwrap();
        assert_eq!(written.len(), FILES.len());
        let root = parent.path().join("of-a-checkout");
        let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
        let whole = fs::canonicalize(sdk).unwrap();
        assert!(manifest.contains(&format!("{{ path = {:?} }}", whole.display().to_string())), "{manifest}");
        assert!(!root.join("sdk").exists());
    }

    #[test]
    fn its_question_can_be_asked() {
        let input = crate::tools::Input::parse(include_str!("scaffold/question.json")).unwrap();
        assert_eq!(input.question.builtin().word(), "choose");
    }
}

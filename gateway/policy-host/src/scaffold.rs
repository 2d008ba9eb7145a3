//! `clonegate plugin new NAME`: writes a crate that builds, tests itself and does something.

use std::fs;
use std::path::{Path, PathBuf};

use clonegate_core::ids::Name;
use clonegate_core::{Error, Result};

const FILES: [(&str, &str); 6] = [
    ("Cargo.toml", include_str!("scaffold/cargo.toml")),
    ("src/lib.rs", include_str!("scaffold/lib.rs")),
    (".cargo/config.toml", include_str!("scaffold/config.toml")),
    ("question.json", include_str!("scaffold/question.json")),
    ("README.md", include_str!("scaffold/README.md")),
    (".gitignore", "/target\n*.wasm\n"),
];

/// Writes the crate into `parent/NAME` and says which files. `sdk` is a path to the SDK, for who builds from a checkout.
///
/// # Errors
/// `bad-name` (invalid), `exists` (exists) when there is something of that name, `no-sdk` (invalid), `cannot-write` (unavailable).
pub fn scaffold(parent: &Path, name: &str, sdk: Option<&Path>) -> Result<Vec<PathBuf>> {
    let name: Name = name.parse()?;
    let name = name.as_str();
    let root = parent.join(name);
    if root.exists() {
        return Err(Error::exists("exists", "there is something of that name already").on(root.display().to_string()));
    }
    let failed = |path: &Path, e| {
        Error::unavailable("cannot-write", "the file cannot be written").on(path.display().to_string()).because(e)
    };
    let sdk = match sdk {
        Some(path) => {
            let manifest = fs::read_to_string(path.join("Cargo.toml")).unwrap_or_default();
            let found = fs::canonicalize(path).ok().filter(|_| manifest.contains("name = \"clonegate-policy\""));
            let Some(found) = found else {
                return Err(Error::invalid("no-sdk", "the SDK is not in this directory")
                    .on(path.display().to_string())
                    .hint("it is the directory `sdk` of the source of clonegate"));
            };
            format!("{{ path = {:?} }}", found.display().to_string())
        }
        None => format!("{:?}", env!("CARGO_PKG_VERSION")),
    };
    let mut written = Vec::new();
    for (file, text) in FILES {
        let path = root.join(file);
        let text =
            text.replace("PLUGIN_NAME", name).replace("PLUGIN_FILE", &name.replace('-', "_")).replace("\"SDK\"", &sdk);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(|e| failed(directory, e))?;
        }
        fs::write(&path, text).map_err(|e| failed(&path, e))?;
        written.push(path);
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_plugin_has_its_name_everywhere_and_takes_no_others_place() {
        let parent = tempfile::tempdir().unwrap();
        let written = scaffold(parent.path(), "least-full", None).unwrap();
        assert_eq!(written.len(), FILES.len());
        let manifest = fs::read_to_string(parent.path().join("least-full/Cargo.toml")).unwrap();
        assert!(manifest.contains("name = \"least-full\"") && manifest.contains("clonegate-policy = \"0.1.0\""));
        assert_eq!(scaffold(parent.path(), "least-full", None).unwrap_err().code(), "exists");
        assert!(scaffold(parent.path(), "../up", None).is_err());
        let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../sdk");
        scaffold(parent.path(), "of-a-checkout", Some(&sdk)).unwrap();
        for wrong in [sdk.join("src"), sdk.join("nowhere")] {
            assert_eq!(scaffold(parent.path(), "other", Some(&wrong)).unwrap_err().code(), "no-sdk");
            assert!(!parent.path().join("other").exists());
        }
    }

    #[test]
    fn its_question_can_be_asked() {
        let input = crate::tools::Input::parse(include_str!("scaffold/question.json")).unwrap();
        assert_eq!(input.question.builtin().word(), "choose");
    }
}

//! What was released stays loadable: the WIT package of this checkout is held to every released copy of the same minor version.
//!
//! A plugin that was built against a released 0.1.x must load into every later 0.1.x. Its component holds the types that it was
//! built with, and linking compares them: records, variants and enums are closed both ways. So within a minor version a type
//! that exists cannot change at all; a new interface, a new type that nothing old mentions, a new world and a new
//! function in an interface that the host provides can come.

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clonegate_core::advice::Slot;
use clonegate_policy_host::{Input, Outcome, WIT};
use wit_parser::{Function, InterfaceId, PackageId, Resolve, Type, TypeDefKind, TypeOwner, WorldItem, WorldKey};

struct Package {
    resolve: Resolve,
    id: PackageId,
}

impl Package {
    fn of(text: &str) -> Self {
        let mut resolve = Resolve::default();
        let id = resolve.push_str("policy.wit", text).unwrap_or_else(|e| panic!("{e:#}"));
        Self { resolve, id }
    }

    fn read(path: &Path) -> Self {
        let mut resolve = Resolve::default();
        let (id, _) = resolve.push_path(path).unwrap_or_else(|e| panic!("{}: {e:#}", path.display()));
        Self { resolve, id }
    }

    fn version(&self) -> (u64, u64, u64) {
        let version = self.resolve.packages[self.id].name.version.clone().expect("the package has a version");
        (version.major, version.minor, version.patch)
    }

    fn interface(&self, name: &str) -> Option<InterfaceId> {
        self.resolve.packages[self.id].interfaces.get(name).copied()
    }

    fn interface_name(&self, id: InterfaceId) -> String {
        self.resolve.interfaces[id].name.clone().unwrap_or_default()
    }

    /// The interfaces that guests export: the host asks for each of their functions.
    fn exported(&self) -> BTreeSet<String> {
        let worlds = self.resolve.packages[self.id].worlds.values();
        let items = worlds.flat_map(|world| self.resolve.worlds[*world].exports.values());
        items
            .filter_map(|item| match item {
                WorldItem::Interface { id, .. } => Some(self.interface_name(*id)),
                _ => None,
            })
            .collect()
    }

    /// A type written out; a named one by its name alone, since it is compared where it is defined.
    fn ty(&self, ty: &Type) -> String {
        let Type::Id(id) = ty else { return format!("{ty:?}").to_lowercase() };
        let def = &self.resolve.types[*id];
        // An alias or a `use` is what it stands for.
        if let TypeDefKind::Type(of) = &def.kind {
            return self.ty(of);
        }
        match (&def.name, def.owner) {
            (Some(name), TypeOwner::Interface(owner)) => format!("{}.{name}", self.interface_name(owner)),
            (Some(name), _) => name.clone(),
            (None, _) => self.kind(&def.kind),
        }
    }

    fn optional(&self, ty: Option<&Type>) -> String {
        ty.map_or("_".into(), |ty| self.ty(ty))
    }

    fn kind(&self, kind: &TypeDefKind) -> String {
        let join = |parts: Vec<String>| parts.join(", ");
        match kind {
            TypeDefKind::Record(r) => {
                let fields = r.fields.iter().map(|f| format!("{}: {}", f.name, self.ty(&f.ty)));
                format!("record {{ {} }}", join(fields.collect()))
            }
            TypeDefKind::Variant(v) => {
                let cases = v.cases.iter().map(|c| format!("{}({})", c.name, self.optional(c.ty.as_ref())));
                format!("variant {{ {} }}", join(cases.collect()))
            }
            TypeDefKind::Enum(e) => format!("enum {{ {} }}", join(e.cases.iter().map(|c| c.name.clone()).collect())),
            TypeDefKind::Flags(f) => format!("flags {{ {} }}", join(f.flags.iter().map(|f| f.name.clone()).collect())),
            TypeDefKind::Tuple(t) => format!("tuple<{}>", join(t.types.iter().map(|t| self.ty(t)).collect())),
            TypeDefKind::Option(t) => format!("option<{}>", self.ty(t)),
            TypeDefKind::List(t) => format!("list<{}>", self.ty(t)),
            TypeDefKind::Result(r) => {
                format!("result<{}, {}>", self.optional(r.ok.as_ref()), self.optional(r.err.as_ref()))
            }
            TypeDefKind::Type(t) => self.ty(t),
            other => panic!("the package holds plain data only, not {}", other.as_str()),
        }
    }

    fn function(&self, function: &Function) -> String {
        let params = function.params.iter().map(|p| format!("{}: {}", p.name, self.ty(&p.ty)));
        format!("func({}) -> {}", params.collect::<Vec<_>>().join(", "), self.optional(function.result.as_ref()))
    }

    /// What a world imports and exports.
    fn world(&self, name: &str) -> Option<(BTreeSet<String>, BTreeSet<String>)> {
        let world = &self.resolve.worlds[*self.resolve.packages[self.id].worlds.get(name)?];
        let names = |items: Vec<&WorldKey>| {
            items
                .into_iter()
                .map(|key| match key {
                    WorldKey::Name(name) => name.clone(),
                    WorldKey::Interface(id) => self.interface_name(*id),
                })
                .collect::<BTreeSet<_>>()
        };
        Some((names(world.imports.keys().collect()), names(world.exports.keys().collect())))
    }
}

/// What of `released` no longer holds in `now`; nothing when another minor version has begun.
fn breaks(released: &Package, now: &Package) -> Vec<String> {
    let (was, is) = (released.version(), now.version());
    if (was.0, was.1) != (is.0, is.1) {
        return Vec::new();
    }
    let mut found = Vec::new();
    if is < was {
        found.push(format!("version {is:?} is older than the released {was:?}"));
    }
    let exported = released.exported();
    for (name, old) in &released.resolve.packages[released.id].interfaces {
        let Some(new) = now.interface(name) else {
            found.push(format!("{name}: the interface is gone"));
            continue;
        };
        let (old, new) = (&released.resolve.interfaces[*old], &now.resolve.interfaces[new]);
        for (function, old) in &old.functions {
            match new.functions.get(function) {
                None => found.push(format!("{name}.{function}: the function is gone")),
                Some(new) => {
                    let (was, is) = (released.function(old), now.function(new));
                    if was != is {
                        found.push(format!("{name}.{function}: was {was}, is {is}"));
                    }
                }
            }
        }
        if exported.contains(name) {
            for function in new.functions.keys().filter(|f| !old.functions.contains_key(*f)) {
                found.push(format!("{name}.{function}: plugins that were built before do not export it"));
            }
        }
        for (ty, old) in &old.types {
            match new.types.get(ty) {
                None => found.push(format!("{name}.{ty}: the type is gone")),
                Some(new) => {
                    let kind = |p: &Package, id| p.kind(&p.resolve.types[id].kind);
                    let (was, is) = (kind(released, *old), kind(now, *new));
                    if was != is {
                        found.push(format!("{name}.{ty}: was {was}, is {is}"));
                    }
                }
            }
        }
    }
    for name in released.resolve.packages[released.id].worlds.keys() {
        let (Some(old), Some(new)) = (released.world(name), now.world(name)) else {
            found.push(format!("{name}: the world is gone"));
            continue;
        };
        if !old.0.is_subset(&new.0) || old.1 != new.1 {
            found.push(format!("{name}: the world was {old:?}, is {new:?}"));
        }
    }
    found
}

fn wit() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wit")
}

fn released() -> Vec<(PathBuf, Package)> {
    let files = std::fs::read_dir(wit().join("released")).unwrap().map(|e| e.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|e| e == "wit"));
    files.map(|path| (path.clone(), Package::read(&path))).collect()
}

#[test]
fn no_released_plugin_is_broken_by_the_package_of_this_checkout() {
    let now = Package::read(&wit());
    let all = released();
    assert!(!all.is_empty());
    for (path, package) in all {
        let (major, minor, patch) = package.version();
        assert_eq!(path.file_stem().unwrap().to_str(), Some(format!("{major}.{minor}.{patch}").as_str()));
        let broken = breaks(&package, &now);
        assert!(broken.is_empty(), "{}: a new minor version is needed:\n{}", path.display(), broken.join("\n"));
    }
    let (major, minor, patch) = now.version();
    assert_eq!(WIT, format!("clonegate:policy@{major}.{minor}.{patch}"));
}

#[test]
fn every_change_that_breaks_plugins_is_found_and_no_other() {
    let text = std::fs::read_to_string(wit().join("released/0.1.0.wit")).unwrap();
    let released = Package::of(&text);
    let changed = |from: &str, to: &str| {
        assert_eq!(text.matches(from).count(), 1, "{from}");
        breaks(&released, &Package::of(&text.replace(from, to)))
    };
    for (what, from, to, says) in [
        ("function gone", "  describe: func() -> info;", "", "plugin.describe: the function is gone"),
        ("function renamed", "  describe: func() -> info;", "  describes: func() -> info;", "plugin.describe"),
        (
            "parameter added",
            "describe: func() -> info;",
            "describe: func(a: u8) -> info;",
            "plugin.describe: was func()",
        ),
        ("parameter renamed", "configure: func(settings: string)", "configure: func(s: string)", "plugin.configure"),
        ("result changed", "-> result<reset-verdict, failure>", "-> result<reset-verdict>", "reset.reset"),
        (
            "function added to an export",
            "describe: func() -> info;",
            "describe: func() -> info; more: func();",
            "plugin.more",
        ),
        ("field gone", "    sequence: u64,\n", "", "types.context: was record"),
        ("field added", "    sequence: u64,\n", "    sequence: u64,\n more: u64,\n", "types.context"),
        ("field of another type", "    sequence: u64,", "    sequence: u32,", "types.context"),
        ("field renamed", "    sequence: u64,", "    sequences: u64,", "types.context"),
        ("fields exchanged", "{ key: string, value: string }", "{ value: string, key: string }", "types.label"),
        ("field made optional", "    now-ms: unix-ms,", "    now-ms: option<unix-ms>,", "types.context"),
        ("case gone", "    offline,\n", "", "types.health"),
        ("case added", "    offline,\n", "    offline,\n    lost,\n", "types.health"),
        ("case renamed", "    keep,\n    /// Discard", "    discards,\n    /// Discard", "types.reset-verdict"),
        ("payload of a case changed", "    ask-again(u32),", "    ask-again(u64),", "types.reset-verdict"),
        ("payload of a case gone", "    ask-again(u32),", "    ask-again,", "types.reset-verdict"),
        (
            "enum case added",
            "{ unknown, clean, crashed, forced }",
            "{ unknown, clean, crashed, forced, hung }",
            "types.exit",
        ),
        ("alias changed", "type bytes = u64;", "type bytes = u32;", "types.bytes"),
        ("list made optional", "    bases: list<listed-base>,", "    bases: option<listed-base>,", "types.inventory"),
        ("world gone", "world reset-policy { include common; include reset-part; }", "", "reset-policy: the world"),
        (
            "world without its import",
            "world common { import log; export plugin; }",
            "world common { export plugin; }",
            "common",
        ),
    ] {
        let found = changed(from, to);
        assert!(found.iter().any(|f| f.starts_with(says)), "{what}: {found:?}");
    }
    for (what, from, to) in [
        ("nothing", "    sequence: u64,", "    sequence: u64,"),
        ("a comment", "/// Where a clone goes.", "/// Where a clone goes, in other words."),
        ("a type that nothing old mentions", "type bytes = u64;", "type bytes = u64;\n  record more { a: u8 }"),
        ("an alias in place of what it stands for", "    capacity: bytes,", "    capacity: u64,"),
        (
            "a function that the host provides",
            "  write: func(",
            "  enabled: func(level: level) -> bool;\n  write: func(",
        ),
        ("an interface", "world common {", "interface more { f: func(); }\nworld common {"),
        ("a world", "world common {", "world more { import log; }\nworld common {"),
        ("a later patch", "package clonegate:policy@0.1.0;", "package clonegate:policy@0.1.7;"),
        ("another minor version may change all", "package clonegate:policy@0.1.0;", "package clonegate:policy@0.2.0;"),
    ] {
        let found = changed(from, to);
        assert!(found.is_empty(), "{what}: {found:?}");
    }
    let next = text.replace("policy@0.1.0;", "policy@0.2.0;").replace("    sequence: u64,\n", "");
    assert!(breaks(&released, &Package::of(&next)).is_empty(), "0.2 is another contract");
    let newer = Package::of(&text.replace("policy@0.1.0;", "policy@0.1.3;"));
    assert_eq!(breaks(&newer, &released), ["version (0, 1, 0) is older than the released (0, 1, 3)"]);
}

#[test]
fn a_component_that_was_built_against_a_release_loads_and_answers() {
    let components = std::fs::read_dir(wit().join("released")).unwrap().map(|e| e.unwrap().path());
    let components: Vec<_> = components.filter(|path| path.extension().is_some_and(|e| e == "wasm")).collect();
    assert_eq!(components.len(), released().len(), "each release keeps one component");
    for path in components {
        let plugin = common::load(&std::fs::read(&path).unwrap()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        for slot in Slot::ALL {
            let Input { context, question, .. } = Input::sample(slot, 20, 100);
            let said = plugin.ask("{}", &context, &question);
            assert_eq!(said.outcome, Outcome::Answer(question.builtin()), "{}: {slot}", path.display());
        }
    }
}

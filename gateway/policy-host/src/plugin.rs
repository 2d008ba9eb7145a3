//! A component that has passed every check at load: pre-linked, described, ready to be asked.

use std::sync::{Arc, OnceLock};

use clonegate_core::advice::Slot;
use clonegate_core::{Error, Result};
use serde::{Deserialize, Serialize};
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, HasSelf, InstancePre, Linker};

use crate::call::State;
use crate::compile::Compiler;
use crate::engine::Engine;
use crate::pack::{FileKind, kind};
use crate::wit;

/// The package and version that this host speaks.
pub const WIT: &str = "clonegate:policy@0.1.0";
const PACKAGE: &str = "clonegate:policy/";
const VERSION: (u64, u64) = (0, 1);

/// What a plugin says of itself, and what was found in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginInfo {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// One sentence.
    pub description: String,
    /// BLAKE3 of its bytes, hexadecimal.
    pub digest: String,
    /// Size of the component, bytes.
    pub bytes: usize,
    /// What it decides.
    pub slots: Vec<Slot>,
    /// The interfaces that it imports, with their versions; `types` holds no function.
    #[serde(default)]
    pub imports: Vec<String>,
    /// JSON Schema of its settings.
    pub settings_schema: Option<serde_json::Value>,
}

/// A loaded plugin.
pub struct Plugin {
    pub(crate) engine: Engine,
    pub(crate) pre: InstancePre<State>,
    pub(crate) exports: Exports,
    info: OnceLock<PluginInfo>,
}

pub(crate) struct Exports {
    pub(crate) plugin: wit::plugin::GuestIndices,
    pub(crate) placement: Option<wit::placement::GuestIndices>,
    pub(crate) rollover: Option<wit::rollover::GuestIndices>,
    pub(crate) reset: Option<wit::reset::GuestIndices>,
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugin").field("info", self.info()).finish_non_exhaustive()
    }
}

impl Plugin {
    /// Loads a component: size, form, compilation, imports and exports, linking, description. Blocks for as long as compiling
    /// takes.
    ///
    /// # Errors
    /// `component-too-large`, `core-module`, `not-wasm`, `bad-component`, `compile-too-slow`, `compile-too-large`,
    /// `forbidden-import`, `newer-wit`, `no-policy`, `wrong-types`, `bad-description` (all invalid), `no-compiler`.
    pub fn load(engine: &Engine, bytes: &[u8], compiler: &Compiler) -> Result<Arc<Self>> {
        let limits = engine.limits();
        if bytes.len() > limits.component_bytes {
            let (has, most) = (bytes.len(), limits.component_bytes);
            return Err(Error::invalid("component-too-large", format!("it has {has} bytes, at most {most} are taken")));
        }
        match kind(bytes) {
            FileKind::Component => {}
            FileKind::CoreModule => {
                return Err(Error::invalid("core-module", "this is a core module, not a component")
                    .hint("make a component of it with `clonegate plugin pack`"));
            }
            FileKind::Other(what) => return Err(Error::invalid("not-wasm", format!("this is {what}"))),
        }
        let component = compiler.compile(engine, bytes)?;
        let (slots, imports) = interface(engine, &component)?;
        let mut linker = Linker::<State>::new(engine.wasm());
        let wrong = |e: wasmtime::Error| {
            Error::invalid("wrong-types", format!("it does not fit {WIT}: {e:#}"))
                .hint("build it against the SDK of this version")
        };
        wit::log::add_to_linker::<State, HasSelf<State>>(&mut linker, |state| state).map_err(wrong)?;
        let pre = linker.instantiate_pre(&component).map_err(wrong)?;
        let has = |slot| slots.contains(&slot);
        let exports = Exports {
            plugin: wit::plugin::GuestIndices::new(&pre).map_err(wrong)?,
            placement: has(Slot::Placement)
                .then(|| wit::placement::GuestIndices::new(&pre))
                .transpose()
                .map_err(wrong)?,
            rollover: has(Slot::Rollover).then(|| wit::rollover::GuestIndices::new(&pre)).transpose().map_err(wrong)?,
            reset: has(Slot::Reset).then(|| wit::reset::GuestIndices::new(&pre)).transpose().map_err(wrong)?,
        };
        let plugin = Self { engine: engine.clone(), pre, exports, info: OnceLock::new() };
        let info = plugin.describe(slots, imports, bytes)?;
        let _ = plugin.info.set(info);
        Ok(Arc::new(plugin))
    }

    /// What it is.
    pub fn info(&self) -> &PluginInfo {
        static NONE: PluginInfo = PluginInfo {
            name: String::new(),
            version: String::new(),
            description: String::new(),
            digest: String::new(),
            bytes: 0,
            slots: Vec::new(),
            imports: Vec::new(),
            settings_schema: None,
        };
        self.info.get().unwrap_or(&NONE)
    }

    fn describe(&self, slots: Vec<Slot>, imports: Vec<String>, bytes: &[u8]) -> Result<PluginInfo> {
        let bad = |what: String| Error::invalid("bad-description", what);
        let said = self.call_describe().map_err(|e| bad(format!("it does not describe itself: {e}")))?;
        let name_ok = (1..=63).contains(&said.name.len())
            && said.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !name_ok {
            return Err(bad("its name is not 1 to 63 lower-case letters, digits and hyphens".into()));
        }
        if said.version.len() > 64 || said.description.len() > 512 {
            return Err(bad("its version is longer than 64 bytes or its description than 512".into()));
        }
        let schema = said.settings_schema.as_deref().map(serde_json::from_str).transpose();
        let settings_schema = schema.map_err(|e| bad(format!("its settings schema is not JSON: {e}")))?;
        Ok(PluginInfo {
            name: said.name,
            version: said.version,
            description: said.description,
            digest: blake3::hash(bytes).to_hex().to_string(),
            bytes: bytes.len(),
            slots,
            imports,
            settings_schema,
        })
    }
}

/// Checks imports and exports by name; what they are made of is checked by linking. Slots and imports.
fn interface(engine: &Engine, component: &Component) -> Result<(Vec<Slot>, Vec<String>)> {
    let ty = component.component_type();
    let (mut imports, mut foreign) = (Vec::new(), Vec::new());
    for (name, _) in ty.imports(engine.wasm()) {
        match part(name) {
            Some(("log" | "types", version)) => {
                same_minor(name, version)?;
                imports.push(name.to_owned());
            }
            _ => foreign.push(name.to_owned()),
        }
    }
    if !foreign.is_empty() {
        foreign.truncate(16);
        return Err(Error::invalid(
            "forbidden-import",
            format!("it imports {}, and a policy may import clonegate:policy/log only", foreign.join(", ")),
        )
        .hint("build it for wasm32-unknown-unknown, not for a WASI target"));
    }
    let (mut slots, mut described) = (Vec::new(), false);
    for (name, item) in ty.exports(engine.wasm()) {
        let (Some((interface, version)), ComponentItem::ComponentInstance(_)) = (part(name), &item.ty) else {
            continue;
        };
        match (interface, Slot::parse(interface)) {
            ("plugin", _) => described = true,
            (_, Some(slot)) => slots.push(slot),
            _ => continue,
        }
        same_minor(name, version)?;
    }
    slots.sort_unstable();
    if !described || slots.is_empty() {
        return Err(Error::invalid(
            "no-policy",
            "it does not export clonegate:policy/plugin and at least one of placement, rollover and reset",
        )
        .hint("name the parts in export!(…) of the SDK"));
    }
    Ok((slots, imports))
}

/// `clonegate:policy/NAME@VERSION` taken apart.
fn part(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix(PACKAGE)?.split_once('@')
}

fn same_minor(name: &str, version: &str) -> Result<()> {
    let mut numbers = version.split('.').map(|n| n.parse::<u64>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) if (major, minor) == VERSION => Ok(()),
        (Some(major), Some(minor)) if (major, minor) > VERSION => {
            Err(Error::invalid("newer-wit", format!("it is built for {name}, and this gateway speaks {WIT}"))
                .hint("update the gateway first, or build the plugin with an older SDK"))
        }
        _ => Err(Error::invalid("wrong-types", format!("it is built for {name}, and this gateway speaks {WIT}"))),
    }
}

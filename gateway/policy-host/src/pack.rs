//! Makes a component of a core module built with the SDK: `clonegate plugin pack`.

use clonegate_core::{Error, Result};

/// What the first bytes of a file say that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A component.
    Component,
    /// A core module, to be packed.
    CoreModule,
    /// Something else; the text says what, as far as it can be told.
    Other(&'static str),
}

/// Looks at the first bytes only.
pub fn kind(bytes: &[u8]) -> FileKind {
    match bytes {
        [b'\0', b'a', b's', b'm', 0x0d, 0, 1, 0, ..] => FileKind::Component,
        [b'\0', b'a', b's', b'm', 1, 0, 0, 0, ..] => FileKind::CoreModule,
        [b'\0', b'a', b's', b'm', ..] => FileKind::Other("WebAssembly of an unknown version"),
        [0x7f, b'E', b'L', b'F', ..] => FileKind::Other("machine code; precompiled plugins are never accepted"),
        [b'(', ..] => FileKind::Other("WebAssembly text"),
        [] => FileKind::Other("empty"),
        _ => FileKind::Other("not WebAssembly"),
    }
}

/// Makes a component of a core module whose custom sections say its world, as the SDK and every WIT generator leave them.
///
/// # Errors
/// `not-wasm`, `already-a-component`, or `cannot-pack` (all invalid) with what is wrong.
pub fn pack(core: &[u8]) -> Result<Vec<u8>> {
    match kind(core) {
        FileKind::CoreModule => {}
        FileKind::Component => {
            return Err(
                Error::invalid("already-a-component", "this is a component already").hint("install it as it is")
            );
        }
        FileKind::Other(what) => return Err(Error::invalid("not-wasm", format!("this is {what}, not a core module"))),
    }
    let failed = |e: anyhow::Error| {
        Error::invalid("cannot-pack", format!("no component can be made of this module: {e:#}")).hint(
            "build it for wasm32-unknown-unknown with the SDK or a WIT generator for the package clonegate:policy",
        )
    };
    wit_component::ComponentEncoder::default()
        .validate(true)
        .module(core)
        .and_then(|mut encoder| encoder.encode())
        .map_err(failed)
}

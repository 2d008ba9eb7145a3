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

/// How the names of the custom sections begin in which WIT generators say the world of a module.
const WORLD_SECTION: &[u8] = b"component-type";

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
    // Without it the encoder makes a component that exports nothing.
    if !core.windows(WORLD_SECTION.len()).any(|bytes| bytes == WORLD_SECTION) {
        return Err(failed(anyhow::anyhow!("it does not say its world (there is no section `component-type`)")));
    }
    wit_component::ComponentEncoder::default()
        .validate(true)
        .module(core)
        .and_then(|mut encoder| encoder.encode())
        .map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_that_no_generator_made_is_refused_and_not_made_an_empty_component() {
        let error = pack(b"\0asm\x01\0\0\0").unwrap_err();
        assert_eq!(error.code(), "cannot-pack");
        assert!(error.message().contains("does not say its world"), "{error}");
    }
}

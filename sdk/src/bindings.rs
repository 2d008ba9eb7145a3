//! Generated from `wit/`: one world per part, so that a plugin exports only what it names in `export!`.

pub mod common {
    wit_bindgen::generate!({
        path: "../wit",
        world: "common",
        pub_export_macro: true,
        export_macro_name: "export_plugin",
        default_bindings_module: "clonegate_policy::bindings::common",
        type_section_suffix: "plugin",
    });
}

pub mod placement {
    wit_bindgen::generate!({
        path: "../wit",
        world: "placement-part",
        with: { "clonegate:policy/types@0.1.0": crate::wire },
        pub_export_macro: true,
        export_macro_name: "export_placement",
        default_bindings_module: "clonegate_policy::bindings::placement",
        type_section_suffix: "placement",
    });
}

pub mod rollover {
    wit_bindgen::generate!({
        path: "../wit",
        world: "rollover-part",
        with: { "clonegate:policy/types@0.1.0": crate::wire },
        pub_export_macro: true,
        export_macro_name: "export_rollover",
        default_bindings_module: "clonegate_policy::bindings::rollover",
        type_section_suffix: "rollover",
    });
}

pub mod reset {
    wit_bindgen::generate!({
        path: "../wit",
        world: "reset-part",
        with: { "clonegate:policy/types@0.1.0": crate::wire },
        pub_export_macro: true,
        export_macro_name: "export_reset",
        default_bindings_module: "clonegate_policy::bindings::reset",
        type_section_suffix: "reset",
    });
}

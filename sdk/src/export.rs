//! `export!`: makes a policy type the plugin of its crate.

/// Makes a type the plugin of this crate: `export!(MyPolicy: placement)`, or several of `placement`, `rollover`, `reset`.
///
/// The type implements [`Settings`](crate::Settings) (see [`settings!`](crate::settings)) and the trait of each part that is
/// named. Name and version of the plugin are those of the crate. Outside `wasm32` it only checks that the traits are there,
/// so that `cargo test` runs natively.
#[macro_export]
macro_rules! export {
    ($policy:ty : $($part:ident),+ $(,)?) => {
        const _: () = {
            const fn settings<T: $crate::Settings>() {}
            settings::<$policy>();
            $($crate::__check_part!($policy, $part);)+
        };

        #[cfg(target_arch = "wasm32")]
        #[doc(hidden)]
        mod __clonegate_plugin {
            #[allow(unused_imports)]
            use super::*;

            pub struct Shim;

            thread_local! {
                static POLICY: ::core::cell::RefCell<$policy> = ::core::cell::RefCell::new(<$policy as ::core::default::Default>::default());
            }

            impl $crate::bindings::common::exports::clonegate::policy::plugin::Guest for Shim {
                fn describe() -> $crate::bindings::common::exports::clonegate::policy::plugin::Info {
                    $crate::bindings::common::exports::clonegate::policy::plugin::Info {
                        name: env!("CARGO_PKG_NAME").into(),
                        version: env!("CARGO_PKG_VERSION").into(),
                        description: env!("CARGO_PKG_DESCRIPTION").into(),
                        settings_schema: Some(<$policy as $crate::Settings>::schema()),
                    }
                }

                fn configure(
                    settings: ::std::string::String,
                ) -> ::core::result::Result<(), ::std::vec::Vec<$crate::bindings::common::exports::clonegate::policy::plugin::Problem>> {
                    $crate::log::__log_panics();
                    match <$policy as $crate::Settings>::from_json(&settings) {
                        Ok(policy) => {
                            POLICY.with(|slot| *slot.borrow_mut() = policy);
                            Ok(())
                        }
                        Err(problems) => Err(problems
                            .into_iter()
                            .map(|p| $crate::bindings::common::exports::clonegate::policy::plugin::Problem {
                                path: p.path,
                                message: p.message,
                            })
                            .collect()),
                    }
                }
            }

            $crate::bindings::common::export_plugin!(Shim with_types_in $crate::bindings::common);
            $($crate::__export_part!($policy, $part);)+
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __check_part {
    ($policy:ty, placement) => {
        const fn placement<T: $crate::Placement>() {}
        placement::<$policy>();
    };
    ($policy:ty, rollover) => {
        const fn rollover<T: $crate::Rollover>() {}
        rollover::<$policy>();
    };
    ($policy:ty, reset) => {
        const fn reset<T: $crate::Reset>() {}
        reset::<$policy>();
    };
    ($policy:ty, $other:ident) => {
        compile_error!(concat!("a plugin exports placement, rollover or reset, not ", stringify!($other)));
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __export_part {
    ($policy:ty, placement) => {
        impl $crate::bindings::placement::exports::clonegate::policy::placement::Guest for Shim {
            fn place(
                ctx: $crate::types::Context,
                request: $crate::wire::PlacementRequest,
                inventory: $crate::wire::Inventory,
            ) -> $crate::Decision<$crate::types::PlacementVerdict> {
                let request = $crate::types::PlacementRequest::from(request);
                let inventory = $crate::types::Inventory::from(inventory);
                let verdict =
                    POLICY.with(|p| <$policy as $crate::Placement>::place(&p.borrow(), &ctx, &request, &inventory));
                $crate::__leave((ctx, request, inventory));
                verdict
            }
        }
        $crate::bindings::placement::export_placement!(Shim with_types_in $crate::bindings::placement);
    };
    ($policy:ty, rollover) => {
        impl $crate::bindings::rollover::exports::clonegate::policy::rollover::Guest for Shim {
            fn roll_over(
                ctx: $crate::types::Context,
                request: $crate::wire::RolloverRequest,
                inventory: $crate::wire::Inventory,
            ) -> $crate::Decision<$crate::types::RolloverVerdict> {
                let request = $crate::types::RolloverRequest::from(request);
                let inventory = $crate::types::Inventory::from(inventory);
                let verdict =
                    POLICY.with(|p| <$policy as $crate::Rollover>::roll_over(&p.borrow(), &ctx, &request, &inventory));
                $crate::__leave((ctx, request, inventory));
                verdict
            }
        }
        $crate::bindings::rollover::export_rollover!(Shim with_types_in $crate::bindings::rollover);
    };
    ($policy:ty, reset) => {
        impl $crate::bindings::reset::exports::clonegate::policy::reset::Guest for Shim {
            fn reset(
                ctx: $crate::types::Context,
                request: $crate::wire::ResetRequest,
            ) -> $crate::Decision<$crate::types::ResetVerdict> {
                let request = $crate::types::ResetRequest::from(request);
                let verdict = POLICY.with(|p| <$policy as $crate::Reset>::reset(&p.borrow(), &ctx, &request));
                $crate::__leave((ctx, request));
                verdict
            }
        }
        $crate::bindings::reset::export_reset!(Shim with_types_in $crate::bindings::reset);
    };
}

/// Leaves what was asked where it is: the instance is thrown away after its one answer, and giving back a hundred records one by
/// one would take longer than many decisions.
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub fn __leave<T>(asked: T) {
    std::mem::forget(asked);
}

//! Tests that are counted as ignored when a program they need is missing.
//!
//! The standard harness decides what is ignored when it is compiled, so these test files are `harness = false` and hand their
//! cases to [`run`].

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Trial};

use crate::programs;

/// In the needs of a test that takes too long for every run: it is ignored unless this variable is set.
pub const LONG: &str = "CLONEGATE_LONG";
/// In the needs of a test of newer boot loaders and firmware than the system's: it is ignored unless this variable names a folder of them.
pub const ROMS: &str = "CLONEGATE_ROMS";

/// One test.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// The promise, in snake case.
    pub name: &'static str,
    /// Programs and files without which it is left out, and [`LONG`] or [`ROMS`] when it runs only if those are set.
    pub needs: &'static [&'static str],
    /// Panics when the promise is broken.
    pub run: fn(),
}

/// Runs `cases` as the standard harness would: same arguments, same output, same exit code.
pub fn run(cases: &[Case]) -> ExitCode {
    let trials = cases.iter().map(|&case| Trial::ignorable_test(case.name, move || Ok(attempt(case)))).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn attempt(case: Case) -> Completion {
    let (variables, programs): (Vec<&str>, Vec<&str>) = case.needs.iter().partition(|name| [LONG, ROMS].contains(name));
    if let Some(unset) = variables.iter().find(|name| std::env::var_os(name).is_none()) {
        return Completion::ignored_with(format!("{unset} is not set"));
    }
    let missing: Vec<_> = programs.into_iter().filter(|name| programs::find(name).is_none()).collect();
    if let Some(first) = missing.first() {
        let text = missing.iter().map(|name| programs::missing(name)).collect::<Vec<_>>().join(", ");
        assert!(!programs::required(), "{}: {text}, and {}=1", first, programs::REQUIRE_CLIENTS);
        println!("{}: skipped: {text}", case.name);
        return Completion::ignored_with(text);
    }
    (case.run)();
    Completion::Completed
}

/// Lists the cases of a test file: `cases! { "curl", "qemu-img" => a_promise; "curl" => another; }` and makes its `main`.
#[macro_export]
macro_rules! cases {
    ($($($need:literal),* => $name:ident;)*) => {
        fn main() -> std::process::ExitCode {
            $crate::harness::run(&[$(
                $crate::harness::Case { name: stringify!($name), needs: &[$($need),*], run: $name },
            )*])
        }
    };
}

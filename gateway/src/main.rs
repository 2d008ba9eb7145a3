//! The `clonegate` program.

fn main() -> std::process::ExitCode {
    clonegate::cli::main()
}

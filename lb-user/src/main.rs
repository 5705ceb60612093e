//! The `homing` binary: everything is in the library.

fn main() -> std::process::ExitCode {
    homing::cli::main(std::env::args_os())
}

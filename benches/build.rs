//! Builds the programs that homing's are compared with and hands their object file to `include_bytes!` as
//! `FLOORS_OBJECT`.

fn main() -> std::process::ExitCode {
    ebpf_toolchain::embed("homing-floors", "FLOORS_OBJECT")
}

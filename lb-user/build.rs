//! Builds the kernel programs and hands their object file to `include_bytes!` as `HOMING_EBPF_OBJECT`.

fn main() -> std::process::ExitCode {
    ebpf_toolchain::embed("homing-ebpf", "HOMING_EBPF_OBJECT")
}

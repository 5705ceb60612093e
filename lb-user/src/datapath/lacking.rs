//! What the running kernel lacks of what the programs need. By asking it, not by its version: vendors bring features to old
//! kernels, and leave some out of new ones.

use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported, is_program_supported};

/// The oldest Linux that has everything; docs/decisions/0023.
pub(super) const OLDEST: &str = "5.11";

/// (program type, its name, helper, its name, the Linux that brought it), the newest first: it is what an old kernel lacks.
const HELPERS: [(ProgramType, &str, BpfHelper, &str, &str); 4] = [
    (ProgramType::Xdp, "XDP", BpfHelper::BPF_FUNC_ktime_get_coarse_ns, "bpf_ktime_get_coarse_ns", "5.11"),
    (ProgramType::SkLookup, "sk_lookup", BpfHelper::BPF_FUNC_ktime_get_coarse_ns, "bpf_ktime_get_coarse_ns", "5.11"),
    (ProgramType::Xdp, "XDP", BpfHelper::BPF_FUNC_tcp_gen_syncookie, "bpf_tcp_gen_syncookie", "5.3"),
    (ProgramType::Xdp, "XDP", BpfHelper::BPF_FUNC_skc_lookup_tcp, "bpf_skc_lookup_tcp", "5.2"),
];

/// The first thing that this kernel lacks, in a sentence; `None` where nothing is, or where it cannot be asked: loading tells
/// then. Needs CAP_BPF.
pub(super) fn lacking() -> Option<String> {
    let is_there = |answer: Result<bool, _>| answer.unwrap_or(true);
    if !is_there(is_program_supported(ProgramType::SkLookup)) {
        return Some(sentence("sk_lookup programs", "5.9"));
    }
    HELPERS
        .into_iter()
        .find(|&(kind, _, helper, ..)| !is_there(is_helper_supported(kind, helper)))
        .map(|(_, kind, _, helper, since)| sentence(&format!("the helper {helper} for {kind} programs"), since))
}

fn sentence(what: &str, since: &str) -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    format!(
        "this kernel (Linux {release}) lacks {what}, there since Linux {since}; the kernel path needs {OLDEST} or later"
    )
}

//! What `persist` promises of any file: the state that was written, or a refusal.

use super::*;

/// As a whole file, and as the state in one whose checksum fits.
pub fn state(bytes: &[u8]) {
    is_itself(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let sum = checksum(text.trim_matches([' ', '\t', '\r', '\n']).as_bytes());
    is_itself(format!("{{\"version\":{VERSION},\"sha256\":\"{sum}\",\"state\":{text}}}").as_bytes());
}

fn is_itself(file: &[u8]) {
    match Saved::decode(file) {
        Err(refusal) => assert!(!refusal.to_string().is_empty()),
        Ok(saved) => {
            assert_eq!(Saved::decode(&saved.encode()).as_ref(), Ok(&saved), "written again it is the same");
            let numbers = saved.numbers();
            assert!(numbers.iter().all(|(name, &number)| saved.apps[number as usize] == *name && !name.is_empty()));
        }
    }
}

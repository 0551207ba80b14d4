//! The two kinds of names a caller chooses.

use super::Invalid;

/// Longest instance id, in bytes: what the jailer of the contract allows as a folder's name.
const INSTANCE_ID_LEN_MAX: usize = 64;

/// Checks the name of a drive or another resource: letters, digits and underscores, at least one.
pub fn check_resource_id(id: &str) -> Result<(), Invalid> {
    if id.is_empty() {
        return Err(Invalid::EmptyId);
    }
    // ASCII only: ids become names of metrics and of files, where look-alike letters help nobody.
    if !id.chars().all(|c| c == '_' || c.is_ascii_alphanumeric()) {
        return Err(Invalid::IdCharacters);
    }
    Ok(())
}

/// Checks the name of a whole instance (`--id`): 1 to 64 letters, digits and hyphens.
///
/// The error is a sentence for the command line.
pub fn check_instance_id(id: &str) -> Result<(), String> {
    if id.is_empty() || id.len() > INSTANCE_ID_LEN_MAX {
        return Err(format!(
            "invalid len ({}); the length must be between 1 and {INSTANCE_ID_LEN_MAX}",
            id.len()
        ));
    }
    match id.chars().enumerate().find(|(_, c)| *c != '-' && !c.is_ascii_alphanumeric()) {
        Some((position, c)) => Err(format!("invalid char ({c}) at position {position}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_ids() {
        assert_eq!(check_resource_id("rootfs_1"), Ok(()));
        assert_eq!(check_resource_id(""), Err(Invalid::EmptyId));
        for id in ["a-b", "a b", "é", "a/b", "a\0"] {
            assert_eq!(check_resource_id(id), Err(Invalid::IdCharacters), "{id:?}");
        }
    }

    #[test]
    fn instance_ids() {
        assert_eq!(check_instance_id("anonymous-instance"), Ok(()));
        assert_eq!(check_instance_id(&"a".repeat(64)), Ok(()));
        assert!(check_instance_id(&"a".repeat(65)).is_err());
        assert!(check_instance_id("").is_err());
        assert_eq!(check_instance_id("12_3"), Err("invalid char (_) at position 2".to_owned()));
    }
}

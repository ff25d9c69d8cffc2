//! The form of a model's name.

/// Longest model name. Full ids with a provider's prefix have some sixty characters.
const MAX_MODEL: usize = 128;

/// Whether this can be a model's name: nothing that could be taken for a flag, nor that the CLI, which accepts any
/// name and fails later, would choke on.
pub(crate) fn is_model_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:/@-[]".contains(&byte);
    let begins_well = name.starts_with(|first: char| first.is_ascii_alphanumeric());
    begins_well && name.len() <= MAX_MODEL && name.bytes().all(allowed)
}

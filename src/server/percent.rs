//! Percent-encoding of any bytes. Pure.

/// Encodes all bytes but the plain ones.
pub(super) fn encode(bytes: &[u8], is_plain: impl Fn(u8) -> bool) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        match *byte {
            b'%' => text.push_str("%25"),
            byte if is_plain(byte) => text.push(char::from(byte)),
            byte => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

/// Decodes a text; `None` if a percent sign is not followed by two hexadecimal digits.
pub(super) fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = text.iter().copied();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        decoded.push(if byte == b'%' { u8::try_from(digit()? * 16 + digit()?).ok()? } else { byte });
    }
    Some(decoded)
}

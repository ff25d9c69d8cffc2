//! Image checks. The CLI replaces unreadable images by a note and answers anyway, so callers would not notice.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// Characters of base64 that reveal the format: 16 characters are 12 bytes.
const BEGINNING: usize = 16;

/// Checks the source of an image block of the Messages API.
pub(super) fn check(source: &Value) -> Result<(), &'static str> {
    let text = |field: &str| source.get(field).and_then(Value::as_str);
    match text("type") {
        Some("base64") => {
            let data = text("data").ok_or("an image needs `data` in its source")?;
            match text("media_type") {
                Some(media_type) => check_data(media_type, data),
                None => Err("an image needs a `media_type` in its source"),
            }
        }
        Some("url") => match text("url") {
            Some(url) if url.starts_with("https://") || url.starts_with("http://") => Ok(()),
            _ => Err("an image's `url` must begin with https:// or http://"),
        },
        Some(_) => Err("an image's source must be of type base64 or url"),
        None => Err("an image needs a `source` with a `type`"),
    }
}

fn check_data(media_type: &str, data: &str) -> Result<(), &'static str> {
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
    if data.is_empty() || !data.len().is_multiple_of(4) || !data.bytes().all(is_base64) {
        return Err("the image's `data` is not base64");
    }
    let beginning = data.get(..BEGINNING.min(data.len())).unwrap_or_default();
    let bytes = STANDARD.decode(beginning).map_err(|_| "the image's `data` is not base64")?;
    let fits = match media_type {
        "image/png" => bytes.starts_with(b"\x89PNG"),
        "image/jpeg" => bytes.starts_with(b"\xff\xd8\xff"),
        "image/gif" => bytes.starts_with(b"GIF8"),
        "image/webp" => bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP"),
        _ => return Err("an image's `media_type` must be image/png, image/jpeg, image/gif or image/webp"),
    };
    if fits { Ok(()) } else { Err("the image's `data` is not of its `media_type`") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn image(media_type: &str, bytes: &[u8]) -> Value {
        json!({ "source": { "type": "base64", "media_type": media_type, "data": STANDARD.encode(bytes) } })
    }

    #[test]
    fn images_are_recognised() {
        assert_eq!(check(&image("image/png", b"\x89PNG\r\n\x1a\n....")["source"]), Ok(()));
        assert_eq!(check(&image("image/webp", b"RIFF\0\0\0\0WEBPVP8 ")["source"]), Ok(()));
        assert_eq!(check(&json!({ "type": "url", "url": "https://h/a.png" })), Ok(()));
        for (wrong, named) in [
            (image("image/png", b"GIF89a"), "not of its"),
            (image("image/bmp", b"BM"), "media_type"),
            (image("image/png", b""), "not base64"),
            (
                json!({ "source": { "type": "base64", "media_type": "image/png", "data": "§§§§" } }),
                "not base64",
            ),
            (json!({ "source": { "type": "base64", "media_type": "image/png" } }), "data"),
            (json!({ "source": { "type": "base64", "data": "aaaa" } }), "media_type"),
            (json!({ "source": { "type": "url", "url": "file:///etc/passwd" } }), "url"),
            (json!({ "source": 7 }), "source"),
            (json!({}), "source"),
        ] {
            assert!(check(&wrong["source"]).unwrap_err().contains(named), "{wrong}");
        }
    }
}

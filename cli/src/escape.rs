//! Untrusted bytes made fit for a terminal: a guest must not be able to drive it.

/// Keeps printable text, tabs, line feeds and carriage returns before line feeds; everything else becomes `\xNN`.
/// Splits of a multi-byte character between two chunks are held back until they are whole.
#[derive(Debug, Default)]
pub struct Escaper {
    /// the start of a character or a CR whose rest has not come yet: at most 3 bytes
    held: Vec<u8>,
}

impl Escaper {
    /// What can be shown of `data` now.
    pub fn push(&mut self, data: &[u8]) -> String {
        self.held.extend_from_slice(data);
        let bytes = std::mem::take(&mut self.held);
        let mut shown = String::with_capacity(bytes.len());
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    rest = self.text(text, &mut shown);
                    break;
                }
                Err(error) => {
                    let (good, bad) = rest.split_at(error.valid_up_to());
                    if !good.is_empty() {
                        // checked just now
                        let left = self.text(std::str::from_utf8(good).unwrap_or_default(), &mut shown);
                        escape_bytes(left, &mut shown);
                    }
                    match error.error_len() {
                        Some(length) => {
                            escape_bytes(&bad[..length], &mut shown);
                            rest = &bad[length..];
                        }
                        // cut in the middle of a character
                        None => {
                            rest = bad;
                            break;
                        }
                    }
                }
            }
        }
        self.held = rest.to_vec();
        shown
    }

    /// What was held back, at the end.
    pub fn finish(self) -> String {
        let mut shown = String::new();
        escape_bytes(&self.held, &mut shown);
        shown
    }

    /// Shows `text`; a CR at its very end is handed back.
    fn text<'a>(&self, text: &'a str, shown: &mut String) -> &'a [u8] {
        let mut chars = text.char_indices().peekable();
        while let Some((at, c)) = chars.next() {
            match c {
                '\n' | '\t' => shown.push(c),
                '\r' => match chars.peek() {
                    Some((_, '\n')) => {}
                    Some(_) => shown.push_str("\\r"),
                    None => return &text.as_bytes()[at..],
                },
                // C0, DEL and C1 controls, and the marks that reorder text
                c if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => {
                    let mut buffer = [0; 4];
                    escape_bytes(c.encode_utf8(&mut buffer).as_bytes(), shown);
                }
                c => shown.push(c),
            }
        }
        &[]
    }
}

fn escape_bytes(bytes: &[u8], shown: &mut String) {
    for byte in bytes {
        shown.push_str(&format!("\\x{byte:02x}"));
    }
}

/// One value on one line of a table.
pub fn line(text: &str) -> String {
    let mut escaper = Escaper::default();
    let mut shown = escaper.push(text.as_bytes());
    shown.push_str(&escaper.finish());
    shown.replace(['\n', '\t'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(chunks: &[&[u8]]) -> String {
        let mut escaper = Escaper::default();
        let mut shown: String = chunks.iter().map(|chunk| escaper.push(chunk)).collect();
        shown.push_str(&escaper.finish());
        shown
    }

    #[test]
    fn text_stays_and_controls_are_shown() {
        assert_eq!(whole(&[b"Linux version\r\n\tok \xc3\xa9\n"]), "Linux version\n\tok é\n");
        assert_eq!(whole(&[b"\x1b]0;owned\x07"]), "\\x1b]0;owned\\x07");
        assert_eq!(whole(&[b"\x1b[2J\x7f\x00"]), "\\x1b[2J\\x7f\\x00");
        // the C1 form of CSI, and a right-to-left override
        assert_eq!(whole(&["\u{9b}31m\u{202e}".as_bytes()]), "\\xc2\\x9b31m\\xe2\\x80\\xae");
        assert_eq!(whole(&[b"50%\r60%\r\n"]), "50%\\r60%\n");
    }

    #[test]
    fn bad_bytes_are_shown_and_end_nothing() {
        assert_eq!(whole(&[b"a\xffb\xfe\n"]), "a\\xffb\\xfe\n");
        assert_eq!(whole(&[b"a\r\xffb"]), "a\\x0d\\xffb");
    }

    #[test]
    fn a_character_cut_between_chunks_is_whole_again() {
        assert_eq!(whole(&[b"\xe2\x82", b"\xac\n"]), "€\n");
        assert_eq!(whole(&[b"line\r", b"\nnext"]), "line\nnext");
        assert_eq!(whole(&[b"end \xe2\x82"]), "end \\xe2\\x82");
        assert_eq!(whole(&[b"end\r"]), "end\\x0d");
    }
}

//! Just enough of Rust's grammar to measure it: what is code, where functions begin and end, what is test code.

/// `source` with comments, strings and character literals blanked; every line keeps its number and length in characters.
pub fn mask(source: &str) -> String {
    let input: Vec<char> = source.chars().collect();
    let mut output = String::with_capacity(source.len());
    let mut at = 0;
    while at < input.len() {
        let end = skip(&input, at);
        if end == at {
            output.push(input[at]);
            at += 1;
        } else {
            output.extend(input[at..end].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    output
}

/// The end of the comment or literal that begins at `at`, or `at` if none does.
fn skip(input: &[char], at: usize) -> usize {
    let rest = &input[at..];
    match rest {
        ['/', '/', ..] => end_of(input, at, |from| input[from] == '\n'),
        ['/', '*', ..] => block_comment(input, at),
        ['"', ..] => string(input, at + 1),
        ['\'', '\\', ..] => end_of(input, at + 3, |from| input[from] == '\'') + 1,
        ['\'', _, '\'', ..] => at + 3,
        ['r', '"' | '#', ..] if !follows_word(input, at) => raw_string(input, at + 1).unwrap_or(at),
        ['b' | 'c', 'r', '"' | '#', ..] if !follows_word(input, at) => {
            raw_string(input, at + 2).unwrap_or(at)
        }
        _ => at,
    }
    .min(input.len())
}

fn follows_word(input: &[char], at: usize) -> bool {
    at > 0 && is_word(input[at - 1])
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn end_of(input: &[char], from: usize, found: impl Fn(usize) -> bool) -> usize {
    (from..input.len()).find(|&at| found(at)).unwrap_or(input.len())
}

fn block_comment(input: &[char], at: usize) -> usize {
    let mut depth = 0_usize;
    let mut at = at;
    while at < input.len() {
        match &input[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn string(input: &[char], mut at: usize) -> usize {
    while at < input.len() {
        match input[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    at
}

/// `at` is behind the `r`. `None`: a raw identifier.
fn raw_string(input: &[char], at: usize) -> Option<usize> {
    let hashes = input[at..].iter().take_while(|&&c| c == '#').count();
    if input.get(at + hashes) != Some(&'"') {
        return None;
    }
    let body = at + hashes + 1;
    let closes =
        |from: usize| input[from] == '"' && (0..hashes).all(|n| input.get(from + 1 + n) == Some(&'#'));
    Some(end_of(input, body, closes) + 1 + hashes)
}

/// For each line (from 0): does it belong to an item under `#[cfg(test)]`?
pub fn test_lines(masked: &str) -> Vec<bool> {
    let mut test = vec![false; masked.lines().count()];
    for (begin, marker) in masked.match_indices("#[cfg(test)]") {
        let end = item_end(masked, begin + marker.len());
        let (first, last) = (line_of(masked, begin), line_of(masked, end));
        for line in first..=last.min(test.len().saturating_sub(1)) {
            test[line] = true;
        }
    }
    test
}

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    pub name: String,
    /// of `fn`, from 1
    pub line: usize,
    /// from `fn` to its closing brace
    pub lines: usize,
}

pub fn functions(masked: &str) -> Vec<Function> {
    let mut found = Vec::new();
    for (at, _) in masked.match_indices("fn ") {
        if masked[..at].chars().next_back().is_some_and(is_word) {
            continue;
        }
        let name: String = masked[at + 3..].chars().take_while(|&c| is_word(c)).collect();
        let end = item_end(masked, at);
        if name.is_empty() || masked.as_bytes().get(end) != Some(&b'}') {
            continue;
        }
        let (first, last) = (line_of(masked, at), line_of(masked, end));
        found.push(Function { name, line: first + 1, lines: last - first + 1 });
    }
    found
}

/// The variants of `enum name`, in their order.
pub fn variants(masked: &str, name: &str) -> Option<Vec<String>> {
    let at = masked.find(&format!("enum {name} {{"))?;
    let open = at + masked[at..].find('{')?;
    let body = &masked[open + 1..item_end(masked, at)];
    let mut depth = 0_i32;
    let mut names = Vec::new();
    let mut expecting = true;
    for (from, c) in body.char_indices() {
        match c {
            '{' | '(' | '[' => depth += 1,
            '}' | ')' | ']' => depth -= 1,
            ',' if depth == 0 => expecting = true,
            _ if depth == 0 && expecting && is_word(c) => {
                names.push(body[from..].chars().take_while(|&c| is_word(c)).collect());
                expecting = false;
            }
            _ => {}
        }
    }
    Some(names)
}

/// Byte offset of the `;` or the closing brace that ends the item that begins at `from`. Brackets are counted, so the `;` of
/// an array type does not end it.
fn item_end(masked: &str, from: usize) -> usize {
    let (mut braces, mut brackets) = (0_usize, 0_usize);
    for (offset, byte) in masked.bytes().enumerate().skip(from) {
        match byte {
            b'(' | b'[' => brackets += 1,
            b')' | b']' => brackets = brackets.saturating_sub(1),
            b'{' => braces += 1,
            b'}' if braces <= 1 => return offset,
            b'}' => braces -= 1,
            b';' if braces == 0 && brackets == 0 => return offset,
            _ => {}
        }
    }
    masked.len()
}

/// Line of a byte offset, from 0.
pub fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())].iter().filter(|&&byte| byte == b'\n').count()
}

#[test]
fn masking_blanks_comments_and_literals_only() {
    let source = "let a = \"fn x() { // }\"; // fn y() {\nlet b = r#\"}\"}\"#; let c = '{'; fn f<'a>(s: &'a str) {}\n/* { /* */ } */ let d = b'\\'';";
    let masked = mask(source);
    assert_eq!(masked.lines().count(), source.lines().count());
    assert_eq!(masked.matches('{').count(), 1, "{masked}");
    assert!(masked.contains("fn f<'a>(s: &'a str) {}"), "{masked}");
    assert!(masked.contains("let d = b"), "{masked}");
}

#[test]
fn functions_are_measured_from_fn_to_brace() {
    let source = "fn one() {}\nimpl X {\n    fn two(\n        a: [u8; 3],\n    ) -> u8 {\n        if a { 1 } else { 2 }\n    }\n}\ntrait T {\n    fn none(&self);\n}\n";
    let found = functions(&mask(source));
    let expected = [("one", 1, 1), ("two", 3, 5)].map(|(name, line, lines)| Function {
        name: name.to_owned(),
        line,
        lines,
    });
    assert_eq!(found, expected);
}

#[test]
fn test_regions_end_with_their_item() {
    let source = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n#[cfg(test)]\nmod more;\nfn d() {}\n";
    let flags = test_lines(&mask(source));
    assert_eq!(flags, [false, true, true, true, true, false, true, true, false]);
}

#[test]
fn variants_are_those_of_the_outer_level() {
    let source = "pub enum E {\n    A,\n    B { x: u8, y: u8 },\n    C(u8, u8),\n    D = 3,\n}";
    assert_eq!(variants(&mask(source), "E").expect("E is there"), ["A", "B", "C", "D"]);
}

//! JSON, one value or several after each other (JSON lines).

use std::fmt::Write as _;

use super::{DEPTH, Key, Node, OBJECT_VALUES, Place, TEXT_OCTETS, TreeError, VALUES, Value};

/// The values of a file. RFC 8259.
///
/// # Errors
/// The text is no JSON, is nested too deep or holds too many values.
pub fn parse(text: &str) -> Result<Vec<Node>, TreeError> {
    let mut reader = Reader::new(text);
    let mut values = Vec::new();
    loop {
        reader.skip_space();
        if reader.peek().is_none() {
            return Ok(values);
        }
        reader.before_object = reader.values;
        values.push(reader.value(0)?);
    }
}

/// The values of a file one by one, each by itself as large as a whole file of [`parse`] may be. After one that is wrong the
/// line after its first goes on.
pub fn lines(text: &str) -> impl Iterator<Item = Result<Node, TreeError>> {
    let mut reader = Reader::new(text);
    std::iter::from_fn(move || {
        reader.skip_space();
        reader.peek()?;
        (reader.values, reader.before_object) = (0, 0);
        let start = (reader.next, reader.at);
        let value = reader.value(0);
        if value.is_err() {
            (reader.next, reader.at) = start;
            while !matches!(reader.peek(), None | Some(b'\n')) {
                reader.step();
            }
        }
        Some(value)
    })
}

/// One line of JSON for a value; what YAML calls a number and JSON doesn't is written as text.
pub fn write(node: &Node) -> String {
    let mut text = String::new();
    write_value(&node.value, &mut text);
    text
}

struct Reader<'a> {
    octets: &'a [u8],
    next: usize,
    at: Place,
    values: usize,
    /// How many there were before the object that is being read.
    before_object: usize,
    /// Whether the value of the top map's `items` is being read.
    items: bool,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Reader<'a> {
        let octets = text.strip_prefix('\u{feff}').unwrap_or(text).as_bytes();
        Reader { octets, next: 0, at: Place { line: 1, column: 1 }, values: 0, before_object: 0, items: false }
    }

    fn value(&mut self, depth: usize) -> Result<Node, TreeError> {
        let at = self.at;
        self.values += 1;
        if depth > DEPTH {
            return Err(self.error(format!("nested deeper than {DEPTH} levels")));
        }
        if self.values > VALUES {
            return Err(self.error(format!("more than {VALUES} values in one file")));
        }
        if self.values - self.before_object > OBJECT_VALUES {
            return Err(self.error(format!("more than {OBJECT_VALUES} values in one object")));
        }
        let value = match self.peek() {
            Some(b'{') => self.map(depth)?,
            Some(b'[') => self.list(depth)?,
            Some(b'"') => Value::Text(self.string()?.into()),
            Some(b'-' | b'0'..=b'9') => Value::Number(self.number()?.into()),
            Some(b't') => self.word("true", Value::Bool(true))?,
            Some(b'f') => self.word("false", Value::Bool(false))?,
            Some(b'n') => self.word("null", Value::Null)?,
            _ => return Err(self.unexpected("a value")),
        };
        Ok(Node { at, value })
    }

    fn map(&mut self, depth: usize) -> Result<Value, TreeError> {
        self.step();
        let mut entries = Vec::new();
        self.skip_space();
        if self.skip(b'}') {
            return Ok(Value::Map(entries));
        }
        loop {
            self.skip_space();
            let at = self.at;
            if self.peek() != Some(b'"') {
                return Err(self.unexpected("a key in double quotes"));
            }
            let key = Key { at, text: self.string()?.into(), ambiguous: false };
            self.skip_space();
            if !self.skip(b':') {
                return Err(self.unexpected("a colon"));
            }
            self.skip_space();
            if depth == 0 {
                self.items = &*key.text == "items";
            }
            entries.push((key, self.value(depth + 1)?));
            self.skip_space();
            if self.skip(b'}') {
                return Ok(Value::Map(entries));
            }
            if !self.skip(b',') {
                return Err(self.unexpected("a comma or a closing brace"));
            }
        }
    }

    fn list(&mut self, depth: usize) -> Result<Value, TreeError> {
        self.step();
        let mut items = Vec::new();
        self.skip_space();
        if self.skip(b']') {
            return Ok(Value::List(items));
        }
        loop {
            self.skip_space();
            if depth == 1 && self.items {
                self.before_object = self.values;
            }
            items.push(self.value(depth + 1)?);
            self.skip_space();
            if self.skip(b']') {
                return Ok(Value::List(items));
            }
            if !self.skip(b',') {
                return Err(self.unexpected("a comma or a closing bracket"));
            }
        }
    }

    fn string(&mut self) -> Result<String, TreeError> {
        self.step();
        let mut text = Vec::new();
        loop {
            if text.len() > TEXT_OCTETS {
                return Err(self.error(format!("text of more than {TEXT_OCTETS} octets")));
            }
            match self.peek() {
                Some(b'"') => {
                    self.step();
                    // The input was UTF-8 and escapes are written as UTF-8: nothing is ever lost here.
                    return String::from_utf8(text).map_err(|_| self.unexpected("text in UTF-8"));
                }
                Some(b'\\') => {
                    self.step();
                    let mut octets = [0; 4];
                    text.extend_from_slice(self.escape()?.encode_utf8(&mut octets).as_bytes());
                }
                Some(octet) if octet >= 0x20 => {
                    let run = self.run(TEXT_OCTETS + 1 - text.len());
                    text.extend_from_slice(run);
                }
                _ => return Err(self.unexpected("a closing quote")),
            }
        }
    }

    /// Steps over text up to a quote, an escape or what text can't hold: most of a file, so in one go.
    fn run(&mut self, most: usize) -> &'a [u8] {
        let rest = &self.octets[self.next..];
        let ends = |octet: &u8| matches!(octet, b'"' | b'\\' | 0..0x20);
        let length = rest.iter().take(most).position(ends).unwrap_or(rest.len().min(most));
        let run = &rest[..length];
        // Continuation octets of UTF-8 are no characters of their own.
        self.at.column += run.iter().filter(|octet| **octet & 0xc0 != 0x80).count() as u32;
        self.next += length;
        run
    }

    fn escape(&mut self) -> Result<char, TreeError> {
        let found = match self.peek() {
            Some(octet @ (b'"' | b'\\' | b'/')) => char::from(octet),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                self.step();
                return self.unicode();
            }
            _ => return Err(self.unexpected("an escape of JSON")),
        };
        self.step();
        Ok(found)
    }

    /// The four digits after `\u`, and the second half if it is a surrogate.
    fn unicode(&mut self) -> Result<char, TreeError> {
        let first = self.hex()?;
        let code = match first {
            0xd800..=0xdbff => {
                let pair = self.skip(b'\\') && self.skip(b'u');
                let second = if pair { self.hex()? } else { 0 };
                if !(0xdc00..=0xdfff).contains(&second) {
                    return Err(self.unexpected("the second half of a surrogate pair"));
                }
                0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00)
            }
            code => code,
        };
        char::from_u32(code).ok_or_else(|| self.unexpected("a character"))
    }

    fn hex(&mut self) -> Result<u32, TreeError> {
        let mut code = 0;
        for _ in 0..4 {
            let digit = self.peek().and_then(|octet| char::from(octet).to_digit(16));
            code = code * 16 + digit.ok_or_else(|| self.unexpected("four hexadecimal digits"))?;
            self.step();
        }
        Ok(code)
    }

    fn number(&mut self) -> Result<String, TreeError> {
        let start = self.next;
        while matches!(self.peek(), Some(b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9')) {
            self.step();
        }
        let text = String::from_utf8_lossy(&self.octets[start..self.next]).into_owned();
        if is_number(&text) { Ok(text) } else { Err(self.error(format!("{text} is no number of JSON"))) }
    }

    fn word(&mut self, word: &str, value: Value) -> Result<Value, TreeError> {
        if !self.octets[self.next..].starts_with(word.as_bytes()) {
            return Err(self.unexpected("a value"));
        }
        for _ in 0..word.len() {
            self.step();
        }
        Ok(value)
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.step();
        }
    }

    fn skip(&mut self, octet: u8) -> bool {
        let found = self.peek() == Some(octet);
        if found {
            self.step();
        }
        found
    }

    fn peek(&self) -> Option<u8> {
        self.octets.get(self.next).copied()
    }

    fn step(&mut self) {
        match self.peek() {
            Some(b'\n') => self.at = Place { line: self.at.line + 1, column: 1 },
            // Continuation octets of UTF-8 are no characters of their own.
            Some(octet) if octet & 0xc0 != 0x80 => self.at.column += 1,
            _ => {}
        }
        self.next += 1;
    }

    fn unexpected(&self, allowed: &str) -> TreeError {
        let found = match std::str::from_utf8(&self.octets[self.next.min(self.octets.len())..]) {
            Ok(rest) => rest.chars().next().map_or("end of file".to_owned(), |found| format!("{found:?}")),
            Err(_) => "half a character".to_owned(),
        };
        self.error(format!("not JSON: {found}; {allowed} is allowed"))
    }

    fn error(&self, text: String) -> TreeError {
        TreeError { at: self.at, text }
    }
}

/// Whether JSON has such a number: no leading zero, no plus, digits on both sides of the dot.
fn is_number(text: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|octet| octet.is_ascii_digit());
    let body = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, exponent) = body.split_once(['e', 'E']).map_or((body, None), |(m, e)| (m, Some(e)));
    let (whole, fraction) = mantissa.split_once('.').map_or((mantissa, None), |(w, f)| (w, Some(f)));
    digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.is_none_or(digits)
        && exponent.is_none_or(|exponent| digits(exponent.strip_prefix(['+', '-']).unwrap_or(exponent)))
}

fn write_value(value: &Value, text: &mut String) {
    match value {
        Value::Null => text.push_str("null"),
        Value::Bool(value) => text.push_str(if *value { "true" } else { "false" }),
        Value::Number(number) if is_number(number) => text.push_str(number),
        Value::Number(other) | Value::Ambiguous(other) | Value::Text(other) => write_text(other, text),
        Value::List(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                write_value(&item.value, text);
            }
            text.push(']');
        }
        Value::Map(entries) => {
            text.push('{');
            for (index, (key, value)) in entries.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                write_text(&key.text, text);
                text.push(':');
                write_value(&value.value, text);
            }
            text.push('}');
        }
    }
}

fn write_text(value: &str, text: &mut String) {
    text.push('"');
    for found in value.chars() {
        match found {
            '"' | '\\' => {
                text.push('\\');
                text.push(found);
            }
            '\0'..='\u{1f}' => {
                let _ = write!(text, "\\u{:04x}", u32::from(found));
            }
            _ => text.push(found),
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn refused(text: &str, why: &str) {
        assert_eq!(parse(text).unwrap_err().to_string(), why);
    }

    #[test]
    fn keys_and_values_know_their_places() {
        let values = parse("{\n  \"é\": [1, {\"b\": \"x\"}]\n}\n{\"c\":null}").unwrap();
        assert_eq!(values.len(), 2);
        let Value::Map(entries) = &values[0].value else { panic!() };
        assert_eq!(entries[0].0.at, Place { line: 2, column: 3 });
        assert_eq!(entries[0].1.at, Place { line: 2, column: 8 });
        let Value::List(items) = &entries[0].1.value else { panic!() };
        assert_eq!(items[1].get("b").unwrap().at, Place { line: 2, column: 18 });
        assert_eq!(values[1].at, Place { line: 4, column: 1 });
    }

    #[test]
    fn escapes_are_read_and_written() {
        let values = parse(r#"["\u0041\ud83d\ude00\/\n\"\\", -1.5e+3, true]"#).unwrap();
        let Value::List(items) = &values[0].value else { panic!() };
        assert_eq!(items[0].as_text(), Some("A\u{1f600}/\n\"\\"));
        assert_eq!(write(&values[0]), "[\"A\u{1f600}/\\u000a\\\"\\\\\",-1.5e+3,true]");
    }

    #[test]
    fn what_is_no_json_is_refused_with_its_place() {
        refused("{\"a\": }", "1:7: not JSON: '}'; a value is allowed");
        refused("{a: 1}", "1:2: not JSON: 'a'; a key in double quotes is allowed");
        refused("{\"a\" 1}", "1:6: not JSON: '1'; a colon is allowed");
        refused("[1 2]", "1:4: not JSON: '2'; a comma or a closing bracket is allowed");
        refused("[01]", "1:4: 01 is no number of JSON");
        refused("\"a\nb\"", "1:3: not JSON: '\\n'; a closing quote is allowed");
        refused("\"\\ud800x\"", "1:8: not JSON: 'x'; the second half of a surrogate pair is allowed");
        refused("{\"a\":1", "1:7: not JSON: end of file; a comma or a closing brace is allowed");
        refused(&"[".repeat(200), "1:102: nested deeper than 100 levels");
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_is_read_is_written_the_same(text in "[\\[\\]{}:,\"\\\\a0-9eE.+ntu \né-]{0,60}") {
            if let Ok(values) = parse(&text) {
                for value in values {
                    let written = write(&value);
                    prop_assert_eq!(write(&parse(&written).unwrap()[0]), written);
                }
            }
        }

        #[test]
        fn it_reads_what_serde_json_reads(text in "[\\[\\]{}:,\"\\\\a0-9eE.+ntu \né-]{0,40}") {
            let theirs: Result<Vec<serde_json::Value>, _> =
                serde_json::Deserializer::from_str(&text).into_iter().collect();
            match parse(&text) {
                // serde_json refuses numbers beyond its range; JSON doesn't.
                Ok(_) => prop_assert!(theirs.is_ok() || theirs.is_err_and(|error| error.to_string().contains("range"))),
                Err(error) => prop_assert!(theirs.is_err(), "{} {}", error, text),
            }
        }
    }
}

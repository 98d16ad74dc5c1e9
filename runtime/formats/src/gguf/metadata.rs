//! Writes GGUF's metadata: [`Metadata`].

/// Keys and values in the order in which they were put, encoded.
#[derive(Default)]
pub(super) struct Metadata {
    pub(super) count: u64,
    pub(super) bytes: Vec<u8>,
}

/// Numbers of the types that are written.
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const TEXT: u32 = 8;
const LIST: u32 = 9;

impl Metadata {
    fn key(&mut self, key: &str, kind: u32) -> &mut Vec<u8> {
        self.count += 1;
        put_text(&mut self.bytes, key);
        self.bytes.extend(kind.to_le_bytes());
        &mut self.bytes
    }

    fn list(&mut self, key: &str, kind: u32, len: usize) -> &mut Vec<u8> {
        let bytes = self.key(key, LIST);
        bytes.extend(kind.to_le_bytes());
        bytes.extend((len as u64).to_le_bytes());
        bytes
    }

    pub(super) fn text(&mut self, key: &str, value: &str) {
        put_text(self.key(key, TEXT), value);
    }

    pub(super) fn u32(&mut self, key: &str, value: u32) {
        self.key(key, U32).extend(value.to_le_bytes());
    }

    pub(super) fn f32(&mut self, key: &str, value: f32) {
        self.key(key, F32).extend(value.to_le_bytes());
    }

    pub(super) fn flag(&mut self, key: &str, value: bool) {
        self.key(key, BOOL).push(value.into());
    }

    pub(super) fn texts<'a>(&mut self, key: &str, values: impl ExactSizeIterator<Item = &'a str>) {
        let bytes = self.list(key, TEXT, values.len());
        values.for_each(|value| put_text(bytes, value));
    }

    pub(super) fn i32s(&mut self, key: &str, values: impl ExactSizeIterator<Item = i32>) {
        self.list(key, I32, values.len()).extend(values.flat_map(i32::to_le_bytes));
    }

    pub(super) fn f32s(&mut self, key: &str, values: impl ExactSizeIterator<Item = f32>) {
        self.list(key, F32, values.len()).extend(values.flat_map(f32::to_le_bytes));
    }
}

/// A length and as many bytes of text.
pub(super) fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

//! What stands before the numbers of a GGUF file: [`Header`].

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::cursor::Cursor;
use super::value::Value;
use crate::encoding::Encoding;
use crate::error::Fault;

/// What a file begins with.
pub(crate) const MAGIC: [u8; 4] = *b"GGUF";
/// The bytes at whose multiples tensors begin where a file does not say otherwise.
pub(crate) const ALIGNMENT: usize = 32;
const ALIGNMENT_MAX: usize = 1 << 16;
const ALIGNMENT_KEY: &str = "general.alignment";
/// Most dimensions of a tensor (`GGML_MAX_DIMS`).
const DIMS_MAX: u32 = 4;
/// The least that a key with its value takes, and a tensor's entry.
const ENTRY_BYTES_MIN: usize = 8 + 4 + 1;
const TENSOR_BYTES_MIN: usize = 8 + 4 + 8 + 4 + 8;

/// Metadata and tensors of a file, checked against its length.
#[derive(Debug)]
pub(crate) struct Header<'a> {
    metadata: BTreeMap<&'a str, Entry<'a>>,
    pub(crate) tensors: Vec<TensorEntry<'a>>,
}

#[derive(Debug)]
struct Entry<'a> {
    /// Of its key.
    offset: usize,
    value: Value<'a>,
}

/// A tensor of the file.
#[derive(Debug)]
pub(crate) struct TensorEntry<'a> {
    pub(crate) name: &'a str,
    /// Of its entry in the header.
    pub(crate) offset: usize,
    /// The slowest dimension first.
    pub(crate) shape: Vec<usize>,
    pub(crate) encoding: Encoding,
    /// Its numbers among the file's bytes.
    pub(crate) bytes: Range<usize>,
}

impl<'a> Header<'a> {
    /// Reads the header of a file with these bytes.
    ///
    /// # Errors
    /// [`Fault`] names the first field that cannot be, and its offset.
    pub(crate) fn read(file: &'a [u8]) -> Result<Self, Fault> {
        let mut cursor = Cursor::new(file);
        if cursor.array("magic")? != MAGIC {
            return Err(Fault::at("magic", 0, "is not `GGUF`"));
        }
        match cursor.u32("version")? {
            2 | 3 => {}
            swapped if swapped.swap_bytes() <= 3 => {
                let problem =
                    "the file is big-endian; gguf's script gguf-convert-endian makes a little-endian one";
                return Err(Fault::at("version", 4, problem));
            }
            other => return Err(Fault::at("version", 4, format!("is {other}; 2 and 3 are read"))),
        }
        let tensor_count = cursor.count("tensor_count", TENSOR_BYTES_MIN)?;
        let entries = cursor.count("metadata_kv_count", ENTRY_BYTES_MIN)?;
        let metadata = read_metadata(&mut cursor, entries)?;
        let mut header = Self { metadata, tensors: Vec::new() };
        header.read_tensors(&mut cursor, tensor_count, file.len())?;
        Ok(header)
    }

    fn alignment(&self) -> Result<usize, Fault> {
        let alignment = self.size(ALIGNMENT_KEY)?.unwrap_or(ALIGNMENT);
        if !alignment.is_power_of_two() || alignment > ALIGNMENT_MAX {
            let problem = format!("is {alignment}; it must be a power of two up to {ALIGNMENT_MAX}");
            return Err(self.fault(ALIGNMENT_KEY, problem));
        }
        Ok(alignment)
    }

    fn read_tensors(
        &mut self,
        cursor: &mut Cursor<'a>,
        count: usize,
        file_bytes: usize,
    ) -> Result<(), Fault> {
        let alignment = self.alignment()?;
        let mut names = BTreeSet::new();
        let mut expected = 0_usize;
        for _ in 0..count {
            let (tensor, field_at, begin) = TensorFields::read(cursor)?.check()?;
            if !names.insert(tensor.name) {
                return Err(Fault::at(tensor.name, tensor.offset, "is there twice"));
            }
            // ggml writes and reads them without gaps, in the order of their entries.
            if begin != expected as u64 {
                let problem = format!("begins at {begin} of the data; the tensors before end at {expected}");
                return Err(Fault::at(tensor.name, field_at, problem));
            }
            expected = aligned(expected.saturating_add(tensor.bytes.len()), alignment);
            if expected > file_bytes.saturating_add(alignment) {
                let problem = format!("ends at byte {expected} of the data of a file of {file_bytes}");
                return Err(Fault::at(tensor.name, tensor.offset, problem));
            }
            self.tensors.push(tensor);
        }
        let data = aligned(cursor.at(), alignment);
        let mut begin = data;
        for tensor in &mut self.tensors {
            tensor.bytes = begin..begin + tensor.bytes.len();
            if tensor.bytes.end > file_bytes {
                let problem = format!("ends at byte {} of a file of {file_bytes}", tensor.bytes.end);
                return Err(Fault::at(tensor.name, tensor.offset, problem));
            }
            begin = aligned(tensor.bytes.end, alignment);
        }
        if let Some(last) = self.tensors.last().filter(|_| file_bytes.saturating_sub(begin) >= alignment) {
            let problem =
                format!("ends at byte {}, and is the last of a file of {file_bytes}", last.bytes.end);
            return Err(Fault::at(last.name, last.offset, problem));
        }
        Ok(())
    }

    /// The value of a key.
    pub(crate) fn value(&self, key: &str) -> Option<Value<'a>> {
        self.metadata.get(key).map(|entry| entry.value)
    }

    /// A fault of a key that is there.
    pub(crate) fn fault(&self, key: &str, problem: impl Into<String>) -> Fault {
        let offset = self.metadata.get(key).map(|entry| entry.offset as u64);
        Fault { field: key.to_owned(), offset, problem: problem.into() }
    }

    fn typed<T>(
        &self,
        key: &str,
        what: &str,
        read: impl Fn(&Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, Fault> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let typed = read(&value);
        typed.map(Some).ok_or_else(|| self.fault(key, format!("is {}; it must be {what}", value.kind())))
    }

    pub(crate) fn size(&self, key: &str) -> Result<Option<usize>, Fault> {
        self.typed(key, "a whole number from 0", Value::size)
    }

    pub(crate) fn float(&self, key: &str) -> Result<Option<f64>, Fault> {
        self.typed(key, "a finite number", |value| value.float().filter(|number| number.is_finite()))
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, Fault> {
        self.typed(key, "a bool", |value| match value {
            Value::Flag(flag) => Some(*flag),
            _ => None,
        })
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, Fault> {
        self.typed(key, "a text", |value| match value {
            Value::Text(text) => Some(*text),
            _ => None,
        })
    }

    /// A list, each of whose values is read by `read`.
    pub(crate) fn list<T>(
        &self,
        key: &'a str,
        what: &str,
        read: impl Fn(Value<'a>) -> Option<T>,
    ) -> Result<Option<Vec<T>>, Fault> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let Value::List(list) = value else {
            return Err(self.fault(key, format!("is {}; it must be a list", value.kind())));
        };
        let typed = |value: Result<Value<'a>, Fault>| {
            let value = value?;
            let problem = || self.fault(key, format!("has {} in it; it must be {what}", value.kind()));
            read(value).ok_or_else(problem)
        };
        list.values(key).map(typed).collect::<Result<_, _>>().map(Some)
    }
}

fn read_metadata<'a>(cursor: &mut Cursor<'a>, entries: usize) -> Result<BTreeMap<&'a str, Entry<'a>>, Fault> {
    let mut metadata = BTreeMap::new();
    for _ in 0..entries {
        let offset = cursor.at();
        let key = cursor.text("key")?;
        let value = Value::read(cursor, key)?;
        if metadata.insert(key, Entry { offset, value }).is_some() {
            return Err(Fault::at(key, offset, "is there twice"));
        }
    }
    Ok(metadata)
}

/// The fields of a tensor's entry, not yet checked.
struct TensorFields<'a> {
    name: &'a str,
    at: usize,
    /// The fastest first.
    dims: Vec<u64>,
    dims_at: usize,
    ggml_type: u32,
    begin: u64,
}

impl<'a> TensorFields<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, Fault> {
        let at = cursor.at();
        let name = cursor.text("tensor name")?;
        let dims_at = cursor.at();
        let dims = cursor.u32(name)?;
        if dims == 0 || dims > DIMS_MAX {
            return Err(Fault::at(name, dims_at, format!("has {dims} dimensions; 1 to {DIMS_MAX} can be")));
        }
        let dims = (0..dims).map(|_| cursor.u64(name)).collect::<Result<_, _>>()?;
        Ok(Self { name, at, dims, dims_at, ggml_type: cursor.u32(name)?, begin: cursor.u64(name)? })
    }

    /// The tensor, whose bytes begin at 0 yet; the offset of the field that says where they do, and what it says.
    fn check(self) -> Result<(TensorEntry<'a>, usize, u64), Fault> {
        let type_at = self.dims_at + 4 + 8 * self.dims.len();
        let encoding = Encoding::of_ggml_type(self.ggml_type).ok_or_else(|| {
            let known: Vec<_> = Encoding::all().map(Encoding::name).collect();
            let problem = format!("is of ggml type {}; {} are read", self.ggml_type, known.join(", "));
            Fault::at(self.name, type_at, problem)
        })?;
        let sizes = self.dims.iter().map(|dim| usize::try_from(*dim).ok().filter(|dim| *dim > 0));
        let shape: Option<Vec<usize>> = sizes.rev().collect();
        let bytes = shape.as_ref().and_then(|shape| {
            let numbers = shape.iter().try_fold(1_usize, |product, dim| product.checked_mul(*dim))?;
            let row = *shape.last()?;
            encoding.bytes_of(row).and(encoding.bytes_of(numbers))
        });
        // Far from overflow whatever is added to it.
        let Some((shape, bytes)) = shape.zip(bytes.filter(|bytes| *bytes < usize::MAX >> 8)) else {
            let problem =
                format!("has dimensions {:?}, of which {} has no blocks", self.dims, encoding.name());
            return Err(Fault::at(self.name, self.dims_at, problem));
        };
        let tensor = TensorEntry { name: self.name, offset: self.at, shape, encoding, bytes: 0..bytes };
        Ok((tensor, type_at + 4, self.begin))
    }
}

/// The next multiple of `alignment`.
pub(crate) fn aligned(bytes: usize, alignment: usize) -> usize {
    bytes.saturating_add(alignment - 1) & !(alignment - 1)
}

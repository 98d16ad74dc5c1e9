//! The values of GGUF's metadata: [`Value`] and [`List`].

use super::cursor::Cursor;
use crate::error::Fault;

/// What a value is, by its number in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    Text = 8,
    List = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

const KINDS: [(Kind, &str, usize); 13] = [
    (Kind::U8, "u8", 1),
    (Kind::I8, "i8", 1),
    (Kind::U16, "u16", 2),
    (Kind::I16, "i16", 2),
    (Kind::U32, "u32", 4),
    (Kind::I32, "i32", 4),
    (Kind::F32, "f32", 4),
    (Kind::Bool, "bool", 1),
    (Kind::Text, "text", 8),
    (Kind::List, "list", 12),
    (Kind::U64, "u64", 8),
    (Kind::I64, "i64", 8),
    (Kind::F64, "f64", 8),
];

impl Kind {
    fn read(cursor: &mut Cursor<'_>, field: &str) -> Result<Self, Fault> {
        let at = cursor.at();
        let number = cursor.u32(field)?;
        let known = KINDS.iter().find(|(kind, ..)| *kind as u32 == number);
        known
            .map(|row| row.0)
            .ok_or_else(|| Fault::at(field, at, format!("is of type {number}; 0 to 12 exist")))
    }

    fn name(self) -> &'static str {
        KINDS[self as usize].1
    }

    /// Bytes of a value; of texts and lists the least.
    fn bytes(self) -> usize {
        KINDS[self as usize].2
    }
}

/// A value of the metadata.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Value<'a> {
    Unsigned(u64),
    Signed(i64),
    Single(f32),
    Double(f64),
    Flag(bool),
    Text(&'a str),
    List(List<'a>),
}

/// A list of values of one kind, as it lies in the file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct List<'a> {
    kind: Kind,
    len: usize,
    bytes: &'a [u8],
    /// Of the first of them.
    offset: usize,
}

impl<'a> Value<'a> {
    pub(crate) fn read(cursor: &mut Cursor<'a>, field: &str) -> Result<Self, Fault> {
        let kind = Kind::read(cursor, field)?;
        match kind {
            Kind::List => List::read(cursor, field).map(Self::List),
            kind => Self::read_one(cursor, kind, field),
        }
    }

    fn read_one(cursor: &mut Cursor<'a>, kind: Kind, field: &str) -> Result<Self, Fault> {
        let at = cursor.at();
        Ok(match kind {
            Kind::U8 => Self::Unsigned(cursor.array::<1>(field)?[0].into()),
            Kind::I8 => Self::Signed(cursor.array::<1>(field)?[0].cast_signed().into()),
            Kind::U16 => Self::Unsigned(u16::from_le_bytes(cursor.array(field)?).into()),
            Kind::I16 => Self::Signed(i16::from_le_bytes(cursor.array(field)?).into()),
            Kind::U32 => Self::Unsigned(cursor.u32(field)?.into()),
            Kind::I32 => Self::Signed(i32::from_le_bytes(cursor.array(field)?).into()),
            Kind::F32 => Self::Single(f32::from_le_bytes(cursor.array(field)?)),
            Kind::Bool => match cursor.array::<1>(field)?[0] {
                byte @ 0..=1 => Self::Flag(byte == 1),
                byte => return Err(Fault::at(field, at, format!("is a bool of {byte}; 0 and 1 exist"))),
            },
            Kind::Text => Self::Text(cursor.text(field)?),
            Kind::U64 => Self::Unsigned(cursor.u64(field)?),
            Kind::I64 => Self::Signed(i64::from_le_bytes(cursor.array(field)?)),
            Kind::F64 => Self::Double(f64::from_le_bytes(cursor.array(field)?)),
            Kind::List => return Err(Fault::at(field, at, "is a list of lists, which no model has")),
        })
    }

    /// What the value is, for messages.
    pub(crate) fn kind(&self) -> String {
        match self {
            Self::Unsigned(value) => format!("the number {value}"),
            Self::Signed(value) => format!("the number {value}"),
            Self::Single(value) => format!("the number {value}"),
            Self::Double(value) => format!("the number {value}"),
            Self::Flag(value) => format!("the bool {value}"),
            Self::Text(_) => "a text".to_owned(),
            Self::List(list) => format!("a list of {} {}", list.len, list.kind.name()),
        }
    }

    /// A number that is whole and not negative.
    pub(crate) fn size(&self) -> Option<usize> {
        match self {
            Self::Unsigned(value) => usize::try_from(*value).ok(),
            Self::Signed(value) => usize::try_from(*value).ok(),
            _ => None,
        }
    }

    pub(crate) fn float(&self) -> Option<f64> {
        match self {
            // The shortest decimal that is read as the same f32.
            Self::Single(value) => value.to_string().parse().ok(),
            Self::Double(value) => Some(*value),
            Self::Unsigned(value) => Some(*value as f64),
            Self::Signed(value) => Some(*value as f64),
            _ => None,
        }
    }
}

impl<'a> List<'a> {
    fn read(cursor: &mut Cursor<'a>, field: &str) -> Result<Self, Fault> {
        let kind = Kind::read(cursor, field)?;
        let len = cursor.count(field, kind.bytes())?;
        let (offset, rest) = (cursor.at(), cursor.left());
        match kind {
            Kind::List => Err(Fault::at(field, offset, "is a list of lists, which no model has")),
            // A text's own length says how far it goes.
            Kind::Text => {
                let mut ahead = Cursor::new(cursor.rest());
                for _ in 0..len {
                    let bytes = ahead.u64(field).map_err(|fault| fault.moved(offset))?;
                    ahead.take(field, bytes).map_err(|fault| fault.moved(offset))?;
                }
                let bytes = cursor.take(field, (rest - ahead.left()) as u64)?;
                Ok(Self { kind, len, bytes, offset })
            }
            kind => {
                let bytes = cursor.take(field, (len * kind.bytes()) as u64)?;
                Ok(Self { kind, len, bytes, offset })
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Its values in order; `field` is named in errors, with the number of the value.
    pub(crate) fn values(self, field: &'a str) -> impl Iterator<Item = Result<Value<'a>, Fault>> + 'a {
        let mut cursor = Cursor::new(self.bytes);
        (0..self.len).map(move |number| {
            let at = cursor.at();
            Value::read_one(&mut cursor, self.kind, field).map_err(|fault| Fault {
                field: format!("{field}[{number}]"),
                offset: Some((self.offset + at) as u64),
                problem: fault.problem,
            })
        })
    }
}

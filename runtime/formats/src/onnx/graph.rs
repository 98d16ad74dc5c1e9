//! Puts a graph together, operation by operation: [`Graph`].

use std::collections::HashMap;

use super::proto::{self, AttributeKind, DataType};

/// A value of the graph, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Value(String);

impl Value {
    /// One that the graph has, or will have, under this name.
    pub(super) fn named(name: &str) -> Self {
        Self(name.to_owned())
    }
}

/// What an operation is told beside its inputs.
#[derive(Debug, Clone, Copy)]
pub(super) enum Told<'a> {
    Int(i64),
    Ints(&'a [i64]),
    Float(f32),
}

/// A size of an input or output.
#[derive(Debug, Clone, Copy)]
pub(super) enum Dim {
    Fixed(usize),
    Named(&'static str),
}

/// The bytes of a tensor in a file beside the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// A graph that grows: an operation is added after those that it takes values from.
#[derive(Default)]
pub(super) struct Graph {
    proto: proto::Graph,
    /// Whose operations are being added.
    scope: String,
    /// Small constants that are there already, by kind, shape and bytes.
    constants: HashMap<(i32, Vec<i64>, Vec<u8>), Value>,
}

impl Graph {
    /// The message, once the graph is complete.
    pub(super) fn finish(mut self, name: &str) -> proto::Graph {
        self.proto.name = name.to_owned();
        self.proto
    }

    /// Names of operations that follow begin with this.
    pub(super) fn enter(&mut self, scope: String) {
        self.scope = scope;
    }

    pub(super) fn input(&mut self, name: &str, kind: DataType, dims: &[Dim]) -> Value {
        self.proto.input.push(value_info(name, kind, dims));
        Value(name.to_owned())
    }

    /// Says that a value is an output of the graph.
    pub(super) fn output(&mut self, value: &Value, kind: DataType, dims: &[Dim]) {
        self.proto.output.push(value_info(&value.0, kind, dims));
    }

    /// An operation with one output.
    pub(super) fn apply(&mut self, operation: &str, inputs: &[&Value]) -> Value {
        self.apply_with(operation, inputs, &[])
    }

    pub(super) fn apply_with(
        &mut self,
        operation: &str,
        inputs: &[&Value],
        told: &[(&str, Told<'_>)],
    ) -> Value {
        let name = self.next_name(operation);
        self.add(operation, inputs, told, name.clone(), vec![name.clone()]);
        Value(name)
    }

    /// The same, with a name for the output.
    pub(super) fn apply_as(
        &mut self,
        output: &str,
        operation: &str,
        inputs: &[&Value],
        told: &[(&str, Told<'_>)],
    ) -> Value {
        let name = self.next_name(operation);
        self.add(operation, inputs, told, name, vec![output.to_owned()]);
        Value(output.to_owned())
    }

    /// Cuts a value along an axis into `N` parts of the same size.
    pub(super) fn split<const N: usize>(&mut self, value: &Value, axis: i64, size: usize) -> [Value; N] {
        let sizes = self.ints(&[size as i64; N]);
        let name = self.next_name("Split");
        let outputs: [String; N] = std::array::from_fn(|part| format!("{name}.{part}"));
        self.add("Split", &[value, &sizes], &[("axis", Told::Int(axis))], name, outputs.to_vec());
        outputs.map(Value)
    }

    fn next_name(&self, operation: &str) -> String {
        format!("/{}/{operation}_{}", self.scope, self.proto.node.len())
    }

    fn add(
        &mut self,
        operation: &str,
        inputs: &[&Value],
        told: &[(&str, Told<'_>)],
        name: String,
        output: Vec<String>,
    ) {
        self.proto.node.push(proto::Node {
            input: inputs.iter().map(|value| value.0.clone()).collect(),
            output,
            name,
            op_type: operation.to_owned(),
            attribute: told.iter().map(|(name, told)| attribute(name, *told)).collect(),
        });
    }

    /// A list of whole numbers.
    pub(super) fn ints(&mut self, numbers: &[i64]) -> Value {
        let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.constant(DataType::Int64, vec![numbers.len() as i64], bytes)
    }

    /// A whole number.
    pub(super) fn int(&mut self, number: i64) -> Value {
        self.constant(DataType::Int64, Vec::new(), number.to_le_bytes().to_vec())
    }

    /// A number.
    pub(super) fn float(&mut self, number: f32) -> Value {
        self.constant(DataType::Float, Vec::new(), number.to_le_bytes().to_vec())
    }

    /// A list of numbers.
    pub(super) fn floats(&mut self, numbers: &[f32]) -> Value {
        let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.constant(DataType::Float, vec![numbers.len() as i64], bytes)
    }

    fn constant(&mut self, kind: DataType, dims: Vec<i64>, bytes: Vec<u8>) -> Value {
        let key = (kind as i32, dims, bytes);
        if let Some(value) = self.constants.get(&key) {
            return value.clone();
        }
        let value = Value(format!("constant_{}", self.constants.len()));
        let (data_type, dims, bytes) = key.clone();
        self.constants.insert(key, value.clone());
        self.proto.initializer.push(proto::Tensor {
            dims,
            data_type,
            name: value.0.clone(),
            raw_data: Some(bytes),
            external_data: Vec::new(),
            data_location: None,
        });
        value
    }

    /// A constant whose bytes lie in a file beside this one.
    pub(super) fn external(
        &mut self,
        name: &str,
        kind: DataType,
        shape: &[usize],
        file: &str,
        place: Place,
    ) -> Value {
        let entry = |key: &str, value: String| proto::Entry { key: key.to_owned(), value };
        self.proto.initializer.push(proto::Tensor {
            dims: shape.iter().map(|dim| *dim as i64).collect(),
            data_type: kind as i32,
            name: name.to_owned(),
            raw_data: None,
            external_data: vec![
                entry("location", file.to_owned()),
                entry("offset", place.offset.to_string()),
                entry("length", place.bytes.to_string()),
            ],
            data_location: Some(proto::EXTERNAL),
        });
        Value(name.to_owned())
    }
}

fn attribute(name: &str, told: Told<'_>) -> proto::Attribute {
    let mut attribute = proto::Attribute { name: name.to_owned(), ..proto::Attribute::default() };
    let kind = match told {
        Told::Int(number) => {
            attribute.i = Some(number);
            AttributeKind::Int
        }
        Told::Ints(numbers) => {
            attribute.ints = numbers.to_vec();
            AttributeKind::Ints
        }
        Told::Float(number) => {
            attribute.f = Some(number);
            AttributeKind::Float
        }
    };
    attribute.r#type = kind as i32;
    attribute
}

fn value_info(name: &str, kind: DataType, dims: &[Dim]) -> proto::ValueInfo {
    let dim = |dim: &Dim| match dim {
        Dim::Fixed(size) => proto::Dimension { dim_value: Some(*size as i64), dim_param: None },
        Dim::Named(name) => proto::Dimension { dim_value: None, dim_param: Some((*name).to_owned()) },
    };
    let shape = proto::Shape { dim: dims.iter().map(dim).collect() };
    let tensor_type = proto::TensorType { elem_type: kind as i32, shape: Some(shape) };
    proto::ValueInfo { name: name.to_owned(), r#type: Some(proto::Type { tensor_type: Some(tensor_type) }) }
}

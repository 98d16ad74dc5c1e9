//! Runs a graph by the definitions of its operations, in f64 and one number after another: what a graph means, to compare
//! with what a decoder computes.

use std::collections::HashMap;

use super::super::proto::{self, DataType};
use super::place_of;

/// A tensor of whatever kind; truth is 1.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Array {
    pub(super) dims: Vec<usize>,
    pub(super) numbers: Vec<f64>,
}

impl Array {
    pub(super) fn new(dims: &[usize], numbers: Vec<f64>) -> Self {
        assert_eq!(dims.iter().product::<usize>(), numbers.len(), "{dims:?}");
        Self { dims: dims.to_vec(), numbers }
    }

    fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        Self { dims: self.dims.clone(), numbers: self.numbers.iter().map(|number| f(*number)).collect() }
    }

    fn ints(&self) -> Vec<i64> {
        self.numbers.iter().map(|number| *number as i64).collect()
    }

    /// The number at a place of a tensor with more or longer dims, into which this one is broadcast.
    fn at(&self, place: &[usize]) -> f64 {
        let skipped = place.len() - self.dims.len();
        let index =
            self.dims.iter().zip(&place[skipped..]).fold(0, |index, (dim, at)| index * dim + at % dim);
        self.numbers[index]
    }

    /// Rows of the last dim.
    fn rows(&self, f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
        self.numbers.chunks(*self.dims.last().unwrap()).flat_map(f).collect()
    }
}

fn places(dims: &[usize]) -> impl Iterator<Item = Vec<usize>> + '_ {
    (0..dims.iter().product()).map(move |mut index: usize| {
        let mut place = vec![0; dims.len()];
        for (at, dim) in place.iter_mut().zip(dims).rev() {
            (*at, index) = (index % dim, index / dim);
        }
        place
    })
}

fn broadcast_dims(a: &[usize], b: &[usize]) -> Vec<usize> {
    let length = a.len().max(b.len());
    let dim = |dims: &[usize], at: usize| (at + dims.len()).checked_sub(length).map_or(1, |at| dims[at]);
    let both = |at| match (dim(a, at), dim(b, at)) {
        (a, b) if a == b || b == 1 => a,
        (1, b) => b,
        (a, b) => panic!("{a} and {b} cannot be broadcast"),
    };
    (0..length).map(both).collect()
}

fn zipped(a: &Array, b: &Array, f: impl Fn(f64, f64) -> f64) -> Array {
    let dims = broadcast_dims(&a.dims, &b.dims);
    let numbers = places(&dims).map(|place| f(a.at(&place), b.at(&place))).collect();
    Array { dims, numbers }
}

/// Products of the matrices in the last two dims.
fn matmul(a: &Array, b: &Array) -> Array {
    let (batch_a, batch_b) = (&a.dims[..a.dims.len() - 2], &b.dims[..b.dims.len() - 2]);
    let mut dims = broadcast_dims(batch_a, batch_b);
    let (inner, last) = (a.dims[a.dims.len() - 1], dims.len());
    assert_eq!(inner, b.dims[b.dims.len() - 2]);
    dims.extend([a.dims[a.dims.len() - 2], b.dims[b.dims.len() - 1]]);
    let number = |place: Vec<usize>| {
        let (mut left, mut right) = (place.clone(), place);
        let term = |at| {
            (left[last + 1], right[last]) = (at, at);
            a.at(&left) * b.at(&right)
        };
        (0..inner).map(term).sum::<f64>()
    };
    Array { numbers: places(&dims).map(number).collect(), dims }
}

fn turned(a: &Array, axes: &[usize]) -> Array {
    let dims: Vec<usize> = axes.iter().map(|axis| a.dims[*axis]).collect();
    let number = |place: Vec<usize>| {
        let mut from = vec![0; place.len()];
        axes.iter().zip(place).for_each(|(axis, at)| from[*axis] = at);
        a.at(&from)
    };
    Array { numbers: places(&dims).map(number).collect(), dims }
}

fn joined(parts: &[&Array], axis: usize) -> Array {
    let mut dims = parts[0].dims.clone();
    dims[axis] = parts.iter().map(|part| part.dims[axis]).sum();
    let number = |mut place: Vec<usize>| {
        for part in parts {
            if place[axis] < part.dims[axis] {
                return part.at(&place);
            }
            place[axis] -= part.dims[axis];
        }
        panic!("no part has {place:?}")
    };
    Array { numbers: places(&dims).map(number).collect(), dims }
}

fn part(a: &Array, axis: usize, first: usize, size: usize) -> Array {
    let mut dims = a.dims.clone();
    dims[axis] = size;
    let number = |mut place: Vec<usize>| {
        place[axis] += first;
        a.at(&place)
    };
    Array { numbers: places(&dims).map(number).collect(), dims }
}

fn reshaped(a: &Array, shape: &[i64]) -> Array {
    let kept = |(at, size): (usize, &i64)| if *size == 0 { a.dims[at] as i64 } else { *size };
    let mut dims: Vec<i64> = shape.iter().enumerate().map(kept).collect();
    let known: i64 = dims.iter().filter(|size| **size > 0).product();
    dims.iter_mut().filter(|size| **size == -1).for_each(|size| *size = a.numbers.len() as i64 / known);
    let dims: Vec<usize> = dims.into_iter().map(|size| size as usize).collect();
    Array::new(&dims, a.numbers.clone())
}

fn unsqueezed(a: &Array, axes: &[i64]) -> Array {
    let mut dims = a.dims.clone();
    axes.iter().for_each(|axis| dims.insert(*axis as usize, 1));
    Array::new(&dims, a.numbers.clone())
}

fn gathered(table: &Array, rows: &Array) -> Array {
    let size: usize = table.dims[1..].iter().product();
    let row = |row: &f64| table.numbers[*row as usize * size..][..size].to_vec();
    let dims: Vec<usize> = rows.dims.iter().chain(&table.dims[1..]).copied().collect();
    Array::new(&dims, rows.numbers.iter().flat_map(row).collect())
}

fn softmax(row: &[f64]) -> Vec<f64> {
    let most = row.iter().copied().fold(f64::MIN, f64::max);
    let powers: Vec<f64> = row.iter().map(|number| (number - most).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|power| power / sum).collect()
}

fn layer_norm(row: &[f64], epsilon: f64) -> Vec<f64> {
    let mean = row.iter().sum::<f64>() / row.len() as f64;
    let variance = row.iter().map(|number| (number - mean).powi(2)).sum::<f64>() / row.len() as f64;
    row.iter().map(|number| (number - mean) / (variance + epsilon).sqrt()).collect()
}

fn constant(tensor: &proto::Tensor, weights: &[u8]) -> Array {
    let bytes = match place_of(tensor) {
        Some((offset, length)) => &weights[offset..offset + length],
        None => tensor.raw_data.as_deref().unwrap(),
    };
    let numbers = if tensor.data_type == DataType::Int64 as i32 {
        bytes.chunks(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap()) as f64).collect()
    } else {
        bytes.chunks(4).map(|bytes| f64::from(f32::from_le_bytes(bytes.try_into().unwrap()))).collect()
    };
    Array::new(&tensor.dims.iter().map(|dim| *dim as usize).collect::<Vec<_>>(), numbers)
}

/// The outputs of a graph, by name.
pub(super) fn run(
    graph: &proto::Graph,
    weights: &[u8],
    mut values: HashMap<String, Array>,
) -> HashMap<String, Array> {
    values.extend(graph.initializer.iter().map(|tensor| (tensor.name.clone(), constant(tensor, weights))));
    for node in &graph.node {
        let inputs: Vec<&Array> = node.input.iter().map(|name| &values[name]).collect();
        let outputs = apply(node, &inputs);
        values.extend(node.output.iter().cloned().zip(outputs));
    }
    graph.output.iter().map(|output| (output.name.clone(), values[&output.name].clone())).collect()
}

fn apply(node: &proto::Node, inputs: &[&Array]) -> Vec<Array> {
    let told = |name: &str| node.attribute.iter().find(|attribute| attribute.name == name);
    let axis = |of: &Array| {
        let axis = told("axis").unwrap().i.unwrap();
        if axis < 0 { (of.dims.len() as i64 + axis) as usize } else { axis as usize }
    };
    let truth = |is: bool| f64::from(u8::from(is));
    let binary = |f: &dyn Fn(f64, f64) -> f64| zipped(inputs[0], inputs[1], f);
    let a = inputs[0];
    vec![match node.op_type.as_str() {
        "Add" => binary(&|a, b| a + b),
        "Sub" => binary(&|a, b| a - b),
        "Mul" => binary(&|a, b| a * b),
        "Div" => binary(&|a, b| a / b),
        "Pow" => binary(&f64::powf),
        "And" => binary(&|a, b| a * b),
        "Greater" => binary(&|a, b| truth(a > b)),
        "LessOrEqual" => binary(&|a, b| truth(a <= b)),
        "Where" => {
            let chosen = zipped(a, inputs[1], |truth, then| if truth == 1.0 { then } else { f64::NAN });
            zipped(&chosen, inputs[2], |chosen, other| if chosen.is_nan() { other } else { chosen })
        }
        "Neg" => a.map(|number| -number),
        "Sqrt" => a.map(f64::sqrt),
        "Cos" => a.map(f64::cos),
        "Sin" => a.map(f64::sin),
        "Tanh" => a.map(f64::tanh),
        "Sigmoid" => a.map(|number| 1.0 / (1.0 + (-number).exp())),
        "Cast" => match told("to").unwrap().i.unwrap() {
            to if to == DataType::Bool as i64 => a.map(|number| truth(number != 0.0)),
            _ => a.clone(),
        },
        "ReduceMean" => {
            assert_eq!((&told("axes").unwrap().ints[..], told("keepdims").unwrap().i), (&[-1][..], Some(1)));
            let mut dims = a.dims.clone();
            *dims.last_mut().unwrap() = 1;
            Array::new(&dims, a.rows(|row| vec![row.iter().sum::<f64>() / row.len() as f64]))
        }
        "Softmax" => {
            assert_eq!(axis(a), a.dims.len() - 1);
            Array::new(&a.dims, a.rows(softmax))
        }
        "LayerNormalization" => {
            let epsilon = f64::from(told("epsilon").unwrap().f.unwrap());
            assert_eq!(axis(a), a.dims.len() - 1);
            let normed = Array::new(&a.dims, a.rows(|row| layer_norm(row, epsilon)));
            zipped(&zipped(&normed, inputs[1], |a, b| a * b), inputs[2], |a, b| a + b)
        }
        "Gemm" => {
            let is_turned = told("transB").unwrap().i == Some(1);
            let weight = if is_turned { turned(inputs[1], &[1, 0]) } else { inputs[1].clone() };
            let product = matmul(a, &weight);
            inputs.get(2).map_or(product.clone(), |bias| zipped(&product, bias, |a, b| a + b))
        }
        "MatMul" => matmul(a, inputs[1]),
        "Transpose" => {
            let axes: Vec<usize> = told("perm").unwrap().ints.iter().map(|axis| *axis as usize).collect();
            turned(a, &axes)
        }
        "Reshape" => reshaped(a, &inputs[1].ints()),
        "Unsqueeze" => unsqueezed(a, &inputs[1].ints()),
        "Gather" => gathered(a, inputs[1]),
        "Shape" => Array::new(&[a.dims.len()], a.dims.iter().map(|dim| *dim as f64).collect()),
        "Range" => {
            let numbers = a.ints()[0]..inputs[1].ints()[0];
            assert_eq!(inputs[2].ints(), [1]);
            let numbers: Vec<f64> = numbers.map(|number| number as f64).collect();
            Array::new(&[numbers.len()], numbers)
        }
        "Concat" => joined(inputs, axis(a)),
        "Split" => {
            let mut first = 0;
            let cut = |size: i64| {
                first += size as usize;
                part(a, axis(a), first - size as usize, size as usize)
            };
            return inputs[1].ints().into_iter().map(cut).collect();
        }
        other => panic!("{other} is no operation that is known here"),
    }]
}

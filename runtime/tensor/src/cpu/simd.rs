//! Which vector instructions this process uses, and the macro that compiles a loop once for each of them.
//!
//! All levels give the same bits: the level changes how many elements are computed at once, never the operations of one
//! element. [`SimdLevel`] is the type to read first.

use std::sync::OnceLock;

/// A set of vector instructions that this machine has.
///
/// A value can only come from detection, so holding one proves that the instructions exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SimdLevel {
    vectors: Instructions,
    /// Whether products in bfloat16 are AMX's.
    amx: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Instructions {
    Plain,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl SimdLevel {
    /// What every machine has: compiled for the base of the target, with `f32::mul_add` for a true fused multiply-add.
    pub const PLAIN: Self = Self::of_vectors(Instructions::Plain);

    const fn of_vectors(vectors: Instructions) -> Self {
        Self { vectors, amx: false }
    }

    /// The levels of this machine, the widest last.
    pub fn available() -> Vec<Self> {
        #[allow(unused_mut)]
        let mut levels = vec![Self::PLAIN];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            levels.push(Self::of_vectors(Instructions::Avx2));
            let wide = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq");
            if wide {
                levels.push(Self::of_vectors(Instructions::Avx512));
                if crate::cpu::tile::amx::is_available() {
                    levels.push(Self { amx: true, ..Self::of_vectors(Instructions::Avx512) });
                }
            }
        }
        // Tests see AMX everywhere.
        #[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
        if let Some(widest) = levels.last().copied().filter(|level| !level.amx) {
            crate::cpu::tile::amx::emulator::install();
            levels.push(Self { amx: true, ..widest });
        }
        levels
    }

    /// The name used by `SIXFOLD_SIMD` and in a node's capability report: `plain`, `avx2`, `avx512` or `amx`.
    pub fn name(self) -> &'static str {
        match self.vectors {
            _ if self.amx => "amx",
            Instructions::Plain => "plain",
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512 => "avx512",
        }
    }

    pub(crate) fn instructions(self) -> Instructions {
        self.vectors
    }

    #[cfg(target_arch = "x86_64")]
    pub(crate) fn has_amx(self) -> bool {
        self.amx
    }
}

/// The level of this process: the widest of the machine, or the one that the environment variable `SIXFOLD_SIMD` names.
///
/// A name that is unknown or that this machine lacks is logged once and ignored, since the bits do not depend on it.
pub fn simd_level() -> SimdLevel {
    static LEVEL: OnceLock<SimdLevel> = OnceLock::new();
    *LEVEL.get_or_init(|| choose(&SimdLevel::available(), std::env::var("SIXFOLD_SIMD").ok().as_deref()))
}

fn choose(available: &[SimdLevel], wanted: Option<&str>) -> SimdLevel {
    let widest = available.last().copied().unwrap_or(SimdLevel::PLAIN);
    let Some(name) = wanted else { return widest };
    available.iter().copied().find(|level| level.name() == name).unwrap_or_else(|| {
        tracing::warn!(wanted = name, used = widest.name(), "SIXFOLD_SIMD names no level of this machine");
        widest
    })
}

/// Defines `$name(level, args)`, which runs the `#[inline(always)]` function `$body` compiled for `level`.
///
/// The compiler vectorises the body's loops for each level; since it neither reassociates nor contracts
/// floating-point operations, the levels agree to the bit.
macro_rules! simd_dispatch {
    ($vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        #[allow(unsafe_code, clippy::too_many_arguments)]
        $vis fn $name(level: $crate::cpu::simd::SimdLevel, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            fn avx512($($arg: $ty),*) $(-> $ret)? {
                $body($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                $body($($arg),*)
            }
            match level.instructions() {
                $crate::cpu::simd::Instructions::Plain => $body($($arg),*),
                // SAFETY: a `SimdLevel` of this kind exists only where the features were detected.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::simd::Instructions::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::simd::Instructions::Avx512 => unsafe { avx512($($arg),*) },
            }
        }
    };
}
pub(crate) use simd_dispatch;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_widest_level_unless_told_otherwise() {
        let available = SimdLevel::available();
        assert_eq!(Some(&choose(&available, None)), available.last());
        assert_eq!(choose(&available, Some("plain")), SimdLevel::PLAIN);
        assert_eq!(Some(&choose(&available, Some("avx1024"))), available.last());
    }

    #[test]
    fn a_level_the_machine_lacks_is_not_taken() {
        assert_eq!(choose(&[SimdLevel::PLAIN], Some("avx512")), SimdLevel::PLAIN);
    }
}

//! AMX for tests on machines without it: its instructions trap there, and a handler does what they would (Intel 64 and IA-32
//! Architectures Software Developer's Manual, vol. 2). Only the forms that this crate uses are known.
//!
//! That a machine computes so was looked at on a Sapphire Rapids: 2,048,000 of 2,048,000 sums of 32 terms had these bits.

use std::cell::RefCell;
use std::sync::Once;

use super::Configuration;

const ROW_BYTES: usize = 64;
const ROWS: usize = 16;
/// The smallest number that is no denormal.
const NORMAL: f32 = f32::MIN_POSITIVE;

/// The tile registers of a thread.
struct Tiles {
    /// Rows and bytes a row of each; both 0 where it is not configured.
    shapes: [(usize, usize); 8],
    data: [[[u8; ROW_BYTES]; ROWS]; 8],
}

thread_local! {
    static TILES: RefCell<Tiles> =
        const { RefCell::new(Tiles { shapes: [(0, 0); 8], data: [[[0; ROW_BYTES]; ROWS]; 8] }) };
}

/// Has the instructions of this process that trap done by the emulator, if they are AMX's.
pub(crate) fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: `on_trap` is a handler of the type that SA_SIGINFO asks for, and an empty mask is valid.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_trap as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER | libc::SA_ONSTACK;
            assert_eq!(libc::sigaction(libc::SIGILL, &raw const action, std::ptr::null_mut()), 0);
        }
    });
}

/// Does the instruction that trapped and goes on behind it, or lets the process die of it.
extern "C" fn on_trap(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands a handler with SA_SIGINFO the registers of the thread that trapped.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let at = registers[libc::REG_RIP as usize] as *const u8;
    // SAFETY: the processor has decoded these bytes, so as many as an instruction has are there to read.
    let length = TILES.with_borrow_mut(|tiles| unsafe { tiles.step(at, registers) });
    match length {
        Some(length) => registers[libc::REG_RIP as usize] += length as i64,
        // SAFETY: the default action is always allowed; the instruction traps again, now to the end.
        None => unsafe {
            libc::signal(libc::SIGILL, libc::SIG_DFL);
        },
    }
}

/// The register with this number in an instruction.
fn register(registers: &[i64], number: u8) -> usize {
    const ORDER: [libc::c_int; 16] = [
        libc::REG_RAX,
        libc::REG_RCX,
        libc::REG_RDX,
        libc::REG_RBX,
        libc::REG_RSP,
        libc::REG_RBP,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
    ];
    registers[ORDER[usize::from(number)] as usize] as usize
}

impl Tiles {
    /// Does the instruction at `at` and says how long it is, or nothing if it is none of AMX's.
    ///
    /// # Safety
    /// There is an instruction, and what it reads and writes may be read and written.
    unsafe fn step(&mut self, at: *const u8, registers: &[i64]) -> Option<usize> {
        // SAFETY: an instruction of AMX has six bytes at least where it has an operand in memory; one byte after the other is
        // looked at only if those before it belong to such an instruction.
        let byte = |index: usize| unsafe { *at.add(index) };
        // Three bytes of VEX, the map 0F 38, 128 bits and W 0.
        if byte(0) != 0xc4 || byte(1) & 0x1f != 2 || byte(2) & 0x84 != 0 {
            return None;
        }
        // Stored inverted.
        let (extend_index, extend_base) = (!byte(1) >> 6 & 1, !byte(1) >> 5 & 1);
        let (prefix, third, opcode, modrm) = (byte(2) & 3, !byte(2) >> 3 & 15, byte(3), byte(4));
        let (mode, reg, rm) = (modrm >> 6, usize::from(modrm >> 3 & 7), modrm & 7);
        // The address of an operand in memory, the step from row to row, and the bytes up to its end.
        let memory = || {
            let has_index = rm == 4;
            let sib = if has_index { byte(5) } else { rm };
            let base = register(registers, sib & 7 | extend_base << 3);
            let index = sib >> 3 & 7 | extend_index << 3;
            let step = if has_index && index != 4 { register(registers, index) << (sib >> 6) } else { 0 };
            let end = 5 + usize::from(has_index);
            let displacement = match mode {
                1 => isize::from(byte(end) as i8),
                2 => i32::from_le_bytes(std::array::from_fn(|i| byte(end + i))) as isize,
                _ => 0,
            };
            let bytes = [0, 1, 4][usize::from(mode)];
            assert!(mode != 0 || sib & 7 != 5, "an address without a base");
            (base.wrapping_add_signed(displacement), step, end + bytes)
        };
        match (opcode, prefix, mode) {
            // tilerelease
            (0x49, 0, 3) if modrm == 0xc0 => {
                self.shapes = [(0, 0); 8];
                Some(5)
            }
            // ldtilecfg
            (0x49, 0, _) if mode != 3 && reg == 0 => {
                let (address, _, length) = memory();
                // SAFETY: the caller promises 64 bytes.
                self.configure(unsafe { &*(address as *const Configuration) });
                Some(length)
            }
            // tilezero
            (0x49, 3, 3) => {
                self.data[reg] = [[0; ROW_BYTES]; ROWS];
                Some(5)
            }
            // tileloadd and tilestored
            (0x4b, 2 | 3, _) if mode != 3 && rm == 4 => {
                let (address, step, length) = memory();
                let (rows, bytes) = self.shape(reg);
                if prefix == 3 {
                    self.data[reg] = [[0; ROW_BYTES]; ROWS];
                }
                for (row, data) in self.data[reg].iter_mut().enumerate().take(rows) {
                    let memory = (address + row * step) as *mut u8;
                    // SAFETY: the caller promises these bytes.
                    unsafe {
                        match prefix {
                            3 => memory.copy_to(data.as_mut_ptr(), bytes),
                            _ => memory.copy_from(data.as_ptr(), bytes),
                        }
                    }
                }
                Some(length)
            }
            // tdpbf16ps
            (0x5c, 2, 3) => {
                self.multiply(reg, usize::from(rm), usize::from(third));
                Some(5)
            }
            _ => None,
        }
    }

    /// What `ldtilecfg` refuses, this does too.
    fn configure(&mut self, configuration: &Configuration) {
        let Configuration { palette, start_row, reserved, row_bytes, rows } = configuration;
        assert_eq!((*palette, *start_row, *reserved), (1, 0, [0; 14]));
        for (index, (bytes, rows)) in row_bytes.iter().zip(rows).enumerate() {
            let (bytes, rows) = (usize::from(*bytes), usize::from(*rows));
            assert!(
                bytes <= ROW_BYTES && rows <= ROWS && (bytes == 0) == (rows == 0),
                "{rows} rows of {bytes}"
            );
            match self.shapes.get_mut(index) {
                Some(shape) => *shape = (rows, bytes),
                None => assert_eq!(rows, 0, "there are eight registers"),
            }
        }
        self.data = [[[0; ROW_BYTES]; ROWS]; 8];
    }

    fn shape(&self, register: usize) -> (usize, usize) {
        let shape = self.shapes[register];
        assert_ne!(shape, (0, 0), "register {register} is not configured");
        shape
    }

    /// `to += left · right`, with numbers that are denormals as zero.
    fn multiply(&mut self, to: usize, left: usize, right: usize) {
        let ((rows, row_bytes), (_, left_bytes), (pairs, right_bytes)) =
            (self.shape(to), self.shape(left), self.shape(right));
        assert!(self.shape(left).0 == rows && right_bytes == row_bytes && left_bytes == 4 * pairs, "shapes");
        let flush = |x: f32| if x.abs() < NORMAL { 0.0f32.copysign(x) } else { x };
        let number = |data: &[u8; ROW_BYTES], index: usize| {
            flush(f32::from_bits(u32::from(u16::from_le_bytes([data[2 * index], data[2 * index + 1]])) << 16))
        };
        for row in 0..rows {
            for column in 0..row_bytes / 4 {
                let mut sums = [0.0f32; 2];
                for pair in 0..pairs {
                    for (second, sum) in sums.iter_mut().enumerate() {
                        let a = number(&self.data[left][row], 2 * pair + second);
                        let b = number(&self.data[right][pair], 2 * column + second);
                        *sum = flush(a.mul_add(b, *sum));
                    }
                }
                let element = &mut self.data[to][row][4 * column..][..4];
                let so_far = f32::from_le_bytes(std::array::from_fn(|i| element[i]));
                let sum = flush(flush(so_far) + flush(sums[0] + sums[1]));
                element.copy_from_slice(&sum.to_le_bytes());
            }
        }
    }
}

//! What Python hands in: text and tokens, as bytes that can be read without the GIL.

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyList, PyString, PyTuple};

/// A str as UTF-8; lone surrogates too, as `surrogatepass` writes them.
pub struct Text(Box<[u8]>);

impl Text {
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl<'a, 'py> FromPyObject<'a, 'py> for Text {
    type Error = PyErr;

    fn extract(value: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        let text = value.cast::<PyString>()?;
        if let Ok(utf8) = text.to_str() {
            return Ok(Text(utf8.as_bytes().into()));
        }
        let encoded = text.call_method1("encode", ("utf-8", "surrogatepass"))?;
        Ok(Text(encoded.cast::<PyBytes>()?.as_bytes().into()))
    }
}

/// A prompt's tokens. Buffers of 32-bit ints or bytes are read where they are.
pub enum Tokens {
    Buffer(PyUntypedBuffer),
    Bytes(PyBackedBytes),
}

impl Tokens {
    /// As `keys.token_bytes` takes them, and with its errors.
    pub fn of(tokens: &Bound<'_, PyAny>) -> PyResult<Tokens> {
        let is_list = tokens.is_instance_of::<PyList>() || tokens.is_instance_of::<PyTuple>();
        if !is_list && let Ok(buffer) = PyUntypedBuffer::get(tokens) {
            let format = buffer.format().to_bytes();
            let is_u32 = buffer.item_size() == 4 && matches!(format, b"I" | b"<I" | b"=I" | b"@I");
            let is_bytes = buffer.item_size() == 1 && buffer.len_bytes() % 4 == 0;
            if buffer.is_c_contiguous() && (is_u32 || is_bytes) {
                return Ok(Tokens::Buffer(buffer));
            }
        }
        let py = tokens.py();
        let module = py.import("aibrix_extproc.index.keys")?;
        let encoded = module.call_method1("token_bytes", (tokens,))?;
        Ok(Tokens::Bytes(encoded.cast_into::<PyBytes>()?.into()))
    }

    /// Little-endian, four bytes each.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Tokens::Bytes(bytes) => bytes,
            Tokens::Buffer(buffer) if buffer.len_bytes() == 0 => &[],
            // SAFETY: self keeps the memory alive and in place. Another thread that writes into
            // a writable buffer meanwhile can change what is hashed, and nothing else.
            Tokens::Buffer(buffer) => unsafe {
                std::slice::from_raw_parts(buffer.buf_ptr().cast(), buffer.len_bytes())
            },
        }
    }
}

/// A copy of any buffer of bytes.
pub fn copy_of(payload: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    let buffer = PyUntypedBuffer::get(payload)?;
    if !buffer.is_c_contiguous() {
        return Err(PyTypeError::new_err("a payload is a contiguous buffer of bytes"));
    }
    if buffer.len_bytes() == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the buffer is held, and the GIL too, while it is copied.
    let bytes =
        unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast::<u8>(), buffer.len_bytes()) };
    Ok(bytes.to_vec())
}

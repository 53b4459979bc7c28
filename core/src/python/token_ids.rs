//! Token ids from a tokenizer's JSON reply, without a Python int for each.
//!
//! Contract: a reply that is read here means what `aibrix_extproc/tokenizer/request.py` says it
//! means. Anything out of the ordinary is None: Python's own reader then decides what it is.

use pyo3::exceptions::{PyBufferError, PyIndexError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PySlice;
use pyo3::types::slice::PySliceIndices;
use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::ffi::{c_int, c_void};
use std::fmt;
use std::sync::Arc;

const FORMAT: &std::ffi::CStr = c"I";

/// Token ids: a read-only buffer of unsigned 32-bit ints, with a length and slices.
#[pyclass(module = "aibrix_extproc._core", frozen, sequence)]
pub struct TokenIds {
    ids: Arc<[u32]>,
    start: usize,
    length: isize,
    stride: isize,
}

impl TokenIds {
    fn new(ids: Vec<u32>) -> Self {
        let length = ids.len() as isize;
        TokenIds { ids: ids.into(), start: 0, length, stride: 4 }
    }

    fn ids(&self) -> &[u32] {
        &self.ids[self.start..self.start + self.length as usize]
    }
}

#[pymethods]
impl TokenIds {
    /// Bytes of one id.
    #[getter]
    fn itemsize(&self) -> usize {
        4
    }

    fn __len__(&self) -> usize {
        self.length as usize
    }

    fn __getitem__<'py>(
        &self,
        py: Python<'py>,
        at: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if let Ok(slice) = at.cast::<PySlice>() {
            return Ok(Bound::new(py, self.slice(slice.indices(self.length)?))?.into_any());
        }
        let at: isize = at.extract()?;
        let at = if at < 0 { at + self.length } else { at };
        let id = usize::try_from(at).ok().and_then(|at| self.ids().get(at));
        let id = id.ok_or_else(|| PyIndexError::new_err("no such token"))?;
        Ok(id.into_pyobject(py)?.into_any())
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        if let Ok(other) = other.cast::<TokenIds>() {
            return self.ids() == other.get().ids();
        }
        let ids: PyResult<Vec<u32>> = other.extract();
        ids.is_ok_and(|ids| ids == self.ids())
    }

    fn __repr__(&self) -> String {
        format!("<TokenIds of {}>", self.length)
    }

    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        if view.is_null() || flags & ffi::PyBUF_WRITABLE == ffi::PyBUF_WRITABLE {
            return Err(PyBufferError::new_err("token ids are read-only"));
        }
        let me = slf.get();
        // SAFETY: `view` is to be filled; everything it points to lives as long as `obj`, which
        // holds a reference to this frozen object.
        unsafe {
            (*view).buf = me.ids().as_ptr().cast::<c_void>().cast_mut();
            (*view).len = me.length * 4;
            (*view).readonly = 1;
            (*view).itemsize = 4;
            (*view).format = if flags & ffi::PyBUF_FORMAT == ffi::PyBUF_FORMAT {
                FORMAT.as_ptr().cast_mut()
            } else {
                std::ptr::null_mut()
            };
            (*view).ndim = 1;
            (*view).shape = (&raw const me.length).cast_mut();
            (*view).strides = (&raw const me.stride).cast_mut();
            (*view).suboffsets = std::ptr::null_mut();
            (*view).internal = std::ptr::null_mut();
            (*view).obj = slf.into_any().into_ptr();
        }
        Ok(())
    }
}

impl TokenIds {
    fn slice(&self, of: PySliceIndices) -> TokenIds {
        if of.step == 1 {
            return TokenIds {
                ids: self.ids.clone(),
                start: self.start + of.start as usize,
                length: of.slicelength as isize,
                stride: 4,
            };
        }
        let ids = self.ids();
        TokenIds::new(
            (0..of.slicelength as isize).map(|n| ids[(of.start + n * of.step) as usize]).collect(),
        )
    }
}

/// The ids and `max_model_len` (0 where it is not told) of a `/tokenize` reply; None: see the module.
#[pyfunction]
pub fn read_tokenized(reply: &[u8]) -> Option<(TokenIds, i64)> {
    let read: Fields = serde_json::from_slice(reply).ok()?;
    Some((TokenIds::new(read.tokens?), read.max_model_len))
}

/// The ids of a `/render` reply, of a list the first; None: see the module.
#[pyfunction]
pub fn read_rendered(reply: &[u8], is_list: bool) -> Option<TokenIds> {
    let read = if is_list {
        let all: Vec<Fields> = serde_json::from_slice(reply).ok()?;
        let mut ids = all.into_iter().map(|one| one.token_ids).collect::<Option<Vec<_>>>()?;
        if ids.is_empty() {
            return None;
        }
        ids.swap_remove(0)
    } else {
        serde_json::from_slice::<Fields>(reply).ok()?.token_ids?
    };
    Some(TokenIds::new(read))
}

/// The fields that count; of two with one name the last does.
#[derive(Default)]
struct Fields {
    tokens: Option<Vec<u32>>,
    token_ids: Option<Vec<u32>>,
    max_model_len: i64,
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Fields;

            fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
                out.write_str("an object")
            }

            // Not a list of fields, which derived code would take too.
            fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Fields, A::Error> {
                Err(A::Error::custom("an object"))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Fields::default();
                while let Some(name) = map.next_key::<std::borrow::Cow<str>>()? {
                    match name.as_ref() {
                        "tokens" => fields.tokens = Some(map.next_value()?),
                        "token_ids" => fields.token_ids = Some(map.next_value()?),
                        "max_model_len" => fields.max_model_len = map.next_value()?,
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(fields)
            }
        }

        from.deserialize_map(Object)
    }
}

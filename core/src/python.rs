//! What Python sees: `aibrix_extproc._core`.
//!
//! Contract: the names, arguments, results and errors of `aibrix_extproc.index.reference`. Results
//! are the dataclasses of `aibrix_extproc.index.results`. The GIL is released while the index
//! works; a buffer that is being read must not be written meanwhile (a write gives a wrong key).
//!
//! Shape: `Applied` is made without its `__init__`, which takes longer than applying a block does
//! (a frozen dataclass sets each field through `object.__setattr__`).

mod prompt;
mod token_ids;

use crate::apply;
use crate::index::{self, Index, NotImported, UnknownSource};
use crate::reasons;
use crate::snapshot::Refused;
use prompt::{Text, Tokens};
use pyo3::IntoPyObjectExt;
use pyo3::exceptions::{PyKeyError, PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyFrozenSet, PyList, PyString, PyType};

/// What Python's side is asked for, once.
struct Results {
    applied: Py<PyType>,
    stats: Py<PyType>,
    array: Py<PyAny>,
    /// The slots of `Applied`, in the order of `FIELDS`.
    slots: Vec<Py<PyAny>>,
    reasons: Vec<Py<PyString>>,
    /// What nearly every payload skips.
    nothing: Py<PyAny>,
}

const FIELDS: [&str; 8] =
    ["stored", "removed", "cleared", "parked", "skipped", "lossy", "timestamp", "events"];

static RESULTS: PyOnceLock<Results> = PyOnceLock::new();

fn results(py: Python<'_>) -> PyResult<&Results> {
    RESULTS.get_or_try_init(py, || {
        let module = py.import("aibrix_extproc.index.results")?;
        Ok(Results {
            applied: module.getattr("Applied")?.cast_into::<PyType>()?.unbind(),
            stats: module.getattr("IndexStats")?.cast_into::<PyType>()?.unbind(),
            array: py.import("array")?.getattr("array")?.unbind(),
            slots: FIELDS
                .iter()
                .map(|name| Ok(module.getattr("Applied")?.getattr(name)?.unbind()))
                .collect::<PyResult<_>>()?,
            reasons: reasons::NAMES
                .iter()
                .map(|name| PyString::intern(py, name).unbind())
                .collect(),
            nothing: py
                .import("types")?
                .getattr("MappingProxyType")?
                .call1((PyDict::new(py),))?
                .unbind(),
        })
    })
}

/// A source's number as Python gives it. Whatever is none is unknown.
struct Number(Option<u64>);

impl<'a, 'py> FromPyObject<'a, 'py> for Number {
    type Error = PyErr;

    fn extract(value: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        Ok(Number(value.extract::<u64>().ok()))
    }
}

impl Number {
    fn known<T>(&self, work: impl FnOnce(u64) -> Result<T, UnknownSource>) -> PyResult<T> {
        self.0
            .ok_or(UnknownSource)
            .and_then(work)
            .map_err(|UnknownSource| PyKeyError::new_err(self.0))
    }
}

/// The index of every engine's KV cache, compiled. See `reference.PrefixIndex`, whose answers it
/// gives.
#[pyclass(module = "aibrix_extproc._core", frozen, subclass)]
struct PrefixIndex {
    index: Index,
}

#[pymethods]
impl PrefixIndex {
    #[new]
    #[pyo3(signature = (max_bytes = 0, max_orphans = 4096))]
    fn new(max_bytes: u64, max_orphans: usize) -> Self {
        PrefixIndex { index: Index::new(max_bytes, max_orphans) }
    }

    /// A new KV cache of this model; its number is never used for another one.
    #[pyo3(signature = (model, lora_id = None, lora_name = None))]
    fn add_source(&self, model: Text, lora_id: Option<i128>, lora_name: Option<Text>) -> u64 {
        self.index.add_source(model.bytes(), lora_id, lora_name.as_ref().map(Text::bytes))
    }

    /// Forget a source. KeyError if unknown.
    fn remove_source(&self, py: Python<'_>, source: Number) -> PyResult<()> {
        source.known(|number| py.detach(|| self.index.remove_source(number)))
    }

    /// Forget all that a source said. KeyError if unknown.
    fn clear_source(&self, py: Python<'_>, source: Number) -> PyResult<()> {
        source.known(|number| py.detach(|| self.index.clear_source(number)))
    }

    /// Apply one msgpack EventBatch. No bytes make it raise; KeyError if unknown.
    fn apply<'py>(
        &self,
        py: Python<'py>,
        source: Number,
        payload: Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let copied;
        let bytes = match payload.cast::<PyBytes>() {
            Ok(bytes) => bytes.as_bytes(),
            Err(_) => {
                copied = prompt::copy_of(&payload)?;
                &copied[..]
            }
        };
        let applied = source.known(|number| py.detach(|| self.index.apply(number, bytes)))?;
        applied_to_python(py, &applied)
    }

    /// All that `apply` needs of a source to go on elsewhere. KeyError if unknown.
    #[pyo3(signature = (source, *, orphans = true))]
    fn export_source<'py>(
        &self,
        py: Python<'py>,
        source: Number,
        orphans: bool,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let data =
            source.known(|number| py.detach(|| self.index.export_source(number, orphans)))?;
        Ok(PyBytes::new(py, &data))
    }

    /// Make a source that was just added hold what an exported one did. KeyError if unknown,
    /// ValueError for what is no export.
    fn import_source(
        &self,
        py: Python<'_>,
        source: Number,
        data: Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let copied;
        let bytes = match data.cast::<PyBytes>() {
            Ok(bytes) => bytes.as_bytes(),
            Err(_) => {
                copied = prompt::copy_of(&data)?;
                &copied[..]
            }
        };
        let imported = source.known(|number| {
            py.detach(|| match self.index.import_source(number, bytes) {
                Ok(()) => Ok(None),
                Err(NotImported::Refused(Refused(why))) => Ok(Some(why)),
                Err(NotImported::UnknownSource) => Err(UnknownSource),
            })
        })?;
        imported.map_or(Ok(()), |why| Err(PyValueError::new_err(why)))
    }

    /// Tokens per block of the last GPU block placed; None before one. KeyError if unknown.
    fn block_size(&self, source: Number) -> PyResult<Option<u64>> {
        source.known(|number| self.index.block_size(number))
    }

    /// The keys of all full blocks of a prompt, as an array of unsigned 64-bit ints.
    #[pyo3(signature = (tokens, block_size, *, lora = None, cache_salt = None))]
    fn block_keys<'py>(
        &self,
        py: Python<'py>,
        tokens: Bound<'py, PyAny>,
        block_size: i64,
        lora: Option<Text>,
        cache_salt: Option<Text>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if block_size < 1 {
            return Err(PyValueError::new_err(format!("a block of {block_size} tokens")));
        }
        let tokens = Tokens::of(&tokens)?;
        let bytes = tokens.bytes();
        // A size beyond 32 bits has no root, and no prompt has such a block.
        let keys = u32::try_from(block_size).map_or_else(
            |_| Vec::new(),
            |size| {
                py.detach(|| {
                    let lora = lora.as_ref().map(Text::bytes);
                    index::block_keys(bytes, size, lora, cache_salt.as_ref().map(Text::bytes))
                })
            },
        );
        let raw: Vec<u8> = keys.iter().flat_map(|key| key.to_ne_bytes()).collect();
        results(py)?.array.bind(py).call1(("Q", PyBytes::new(py, &raw)))
    }

    /// Source → depth, in the source's own blocks; only sources with a depth above 0.
    #[pyo3(signature = (model, tokens, *, lora = None, cache_salt = None))]
    fn r#match<'py>(
        &self,
        py: Python<'py>,
        model: Text,
        tokens: Bound<'py, PyAny>,
        lora: Option<Text>,
        cache_salt: Option<Text>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let tokens = Tokens::of(&tokens)?;
        let bytes = tokens.bytes();
        let mut found = Vec::new();
        py.detach(|| {
            let lora = lora.as_ref().map(Text::bytes);
            let salt = cache_salt.as_ref().map(Text::bytes);
            self.index.matches(model.bytes(), bytes, lora, salt, &mut found);
        });
        let depths = PyDict::new(py);
        for (source, depth) in found {
            depths.set_item(source, depth)?;
        }
        Ok(depths)
    }

    /// The size of the index; takes as long as there are sources.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let stats = py.detach(|| self.index.stats());
        let per_source = PyDict::new(py);
        for (source, placements) in &stats.per_source {
            per_source.set_item(source, placements)?;
        }
        let fields = PyDict::new(py);
        fields.set_item("sources", stats.per_source.len())?;
        fields.set_item("blocks", stats.blocks)?;
        fields.set_item("placements", stats.placements)?;
        fields.set_item("orphans", stats.orphans)?;
        fields.set_item("bytes", stats.bytes)?;
        fields.set_item("by_medium", stats.by_medium)?;
        fields.set_item("full_sources", PyFrozenSet::new(py, stats.full_sources)?)?;
        fields.set_item("per_source", per_source)?;
        results(py)?.stats.bind(py).call((), Some(&fields))
    }
}

fn applied_to_python<'py>(
    py: Python<'py>,
    applied: &apply::Applied,
) -> PyResult<Bound<'py, PyAny>> {
    let results = results(py)?;
    let skipped = if applied.skipped == reasons::Skipped::default() {
        results.nothing.bind(py).clone()
    } else {
        let skipped = PyDict::new(py);
        for (name, &count) in results.reasons.iter().zip(&applied.skipped.0) {
            if count > 0 {
                skipped.set_item(name, count)?;
            }
        }
        skipped.into_any()
    };
    let values = [
        applied.stored.into_bound_py_any(py)?,
        applied.removed.into_bound_py_any(py)?,
        applied.cleared.into_bound_py_any(py)?,
        applied.parked.into_bound_py_any(py)?,
        skipped,
        applied.skipped.is_lossy().into_bound_py_any(py)?,
        applied.timestamp.into_bound_py_any(py)?,
        applied.events.into_bound_py_any(py)?,
    ];
    let class = results.applied.bind(py);
    // SAFETY: an ordinary heap type; what it makes has its slots empty and its reference owned.
    let object = unsafe {
        let made = ffi::PyType_GenericAlloc(class.as_type_ptr(), 0);
        Bound::from_owned_ptr_or_err(py, made)?
    };
    for (slot, value) in results.slots.iter().zip(&values) {
        set_slot(slot.bind(py), &object, value)?;
    }
    Ok(object)
}

/// What `object.__setattr__` comes to, for a slot that is known.
fn set_slot(
    slot: &Bound<'_, PyAny>,
    object: &Bound<'_, PyAny>,
    value: &Bound<'_, PyAny>,
) -> PyResult<()> {
    // SAFETY: three live objects, and the GIL is held; a slot's type has this function.
    let status = unsafe {
        match (*slot.get_type_ptr()).tp_descr_set {
            Some(set) => set(slot.as_ptr(), object.as_ptr(), value.as_ptr()),
            None => return Err(PyTypeError::new_err("Applied has no slots")),
        }
    };
    if status == 0 { Ok(()) } else { Err(PyErr::fetch(object.py())) }
}

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PrefixIndex>()?;
    module.add_class::<token_ids::TokenIds>()?;
    module.add_function(wrap_pyfunction!(token_ids::read_tokenized, module)?)?;
    module.add_function(wrap_pyfunction!(token_ids::read_rendered, module)?)?;
    module.add(
        "__all__",
        PyList::new(module.py(), ["PrefixIndex", "TokenIds", "read_rendered", "read_tokenized"])?,
    )
}

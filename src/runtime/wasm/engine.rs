//! The WebAssembly engines: how modules are compiled, and where their memory comes from.
//!
//! Runs nothing (instance.rs) and keeps nothing (modules.rs, cache.rs). Two engines with one kind
//! of code: one takes memory from a pool that is set up once, so that a run begins in microseconds;
//! the other takes it from the kernel, for modules that do not fit the pool. Compiled code is
//! trusted like a program of ours: it comes from the compiler below or from our own directory,
//! where its digest was checked.
//! Source: the documentation of `wasmtime::Config` and `PoolingAllocationConfig`.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};

use wasmtime::{
    Config, Engine, ExternType, InstanceAllocationStrategy, InstancePre, Linker, Module,
    PoolingAllocationConfig, WasmBacktraceDetails,
};

use crate::proto::limits;
use crate::runtime::wasm::WasmError;
use crate::runtime::wasm::instance::State;
use crate::runtime::wasm::wasi;

/// With this a binary module begins.
const MAGIC: &[u8] = b"\0asm";
/// After the magic, a component has another number than a module.
const MODULE_VERSION: &[u8] = &[1, 0, 0, 0];
/// The one module that a WASI preview 1 program imports from.
const WASI_MODULE: &str = "wasi_snapshot_preview1";
/// The function that a program begins with.
pub const START: &str = "_start";

/// Both engines with what a module may import.
pub struct Engines {
    pooled: Host,
    apart: Host,
    /// A number for everything that compiled code depends on beside its module.
    pub number: u64,
}

struct Host {
    engine: Engine,
    linker: Linker<State>,
}

/// A module that can be started.
pub struct Ready {
    /// The module with its imports.
    pub pre: InstancePre<State>,
    /// Bytes of its code.
    pub bytes: usize,
}

impl Engines {
    /// Engines for a number of modules that run at one time.
    ///
    /// # Errors
    /// The processor or the system is not fit for it. Nothing was changed.
    pub fn new(count: u32) -> Result<Self, WasmError> {
        let failed = |error: wasmtime::Error| WasmError::Engine(format!("{error:#}"));
        let mut config = config();
        // What this engine compiles is small, and done before threads could share it.
        config.parallel_compilation(false);
        let apart = Host::new(&config).map_err(failed)?;
        config.parallel_compilation(true);
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(count)));
        let pooled = match Host::new(&config) {
            Ok(pooled) => pooled,
            Err(error) => {
                tracing::warn!("no pool for WASI jobs, they start more slowly: {error:#}");
                config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
                Host::new(&config).map_err(failed)?
            }
        };
        let number = number(&pooled.engine);
        if number != self::number(&apart.engine) {
            return Err(WasmError::Engine("its two forms differ in their code".into()));
        }
        Ok(Self { pooled, apart, number })
    }

    /// What interrupts all that runs, so that it is seen whether it is to end.
    pub fn ticking(&self) -> impl Fn() + Send + Sync + 'static {
        let engines = [self.pooled.engine.clone(), self.apart.engine.clone()];
        move || engines.iter().for_each(Engine::increment_epoch)
    }

    /// Compiles a module, binary or text. Takes long for a large one.
    ///
    /// # Errors
    /// In words, what is wrong with it. It is the same at the next time.
    pub fn compile(&self, bytes: &[u8]) -> Result<Vec<u8>, String> {
        check(bytes)?;
        let small = bytes.len() <= limits::WASM_SMALL_BYTES;
        let engine = if small { &self.apart.engine } else { &self.pooled.engine };
        let what = if bytes.starts_with(MAGIC) { "a module" } else { "the text of a module" };
        let words = |error: wasmtime::Error| format!("is not {what} that can run: {error:#}");
        engine.precompile_module(bytes).map_err(words)
    }

    /// Makes compiled code ready to be started.
    ///
    /// # Errors
    /// The code is of another engine, or the module cannot run as a program.
    pub fn load(&self, code: &Code<'_>) -> Result<Ready, LoadError> {
        let (host, module) = match deserialize(&self.pooled.engine, code) {
            Ok(module) => (&self.pooled, module),
            // Most likely it does not fit the pool.
            Err(error) => match deserialize(&self.apart.engine, code) {
                Ok(module) => {
                    tracing::info!("a module runs outside of the pool: {error:#}");
                    (&self.apart, module)
                }
                Err(error) => return Err(LoadError::Code(format!("{error:#}"))),
            },
        };
        check_imports(&module).and_then(|()| check_start(&module)).map_err(LoadError::Module)?;
        let words = |error: wasmtime::Error| LoadError::Module(format!("{error:#}"));
        let pre = host.linker.instantiate_pre(&module).map_err(words)?;
        let code = module.image_range();
        let bytes = code.end.addr() - code.start.addr();
        Ok(Ready { pre, bytes })
    }
}

/// Compiled code.
pub enum Code<'a> {
    /// Just compiled.
    Compiled(&'a [u8]),
    /// Compiled earlier, and since read and checked: a file in memory.
    Kept(File),
}

/// Why compiled code cannot be started.
#[derive(Debug)]
pub enum LoadError {
    /// It is not code for this engine; to compile again helps.
    Code(String),
    /// The module is not a program; nothing helps.
    Module(String),
}

impl Host {
    fn new(config: &Config) -> wasmtime::Result<Self> {
        let engine = Engine::new(config)?;
        let mut linker = Linker::new(&engine);
        wasi::add_to_linker(&mut linker)?;
        Ok(Self { engine, linker })
    }
}

fn config() -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .wasm_exceptions(true)
        .max_wasm_stack(limits::WASM_STACK_BYTES)
        .async_stack_size(limits::WASM_FIBER_BYTES)
        .wasm_backtrace_details(WasmBacktraceDetails::Disable);
    config
}

fn pool(count: u32) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_core_instances(count)
        // One for the module, and one for the heap on which its exceptions live.
        .total_memories(count.saturating_mul(2))
        .total_tables(count.saturating_mul(limits::WASM_TABLES_POOLED))
        .total_stacks(count)
        .total_gc_heaps(count)
        .max_tables_per_module(limits::WASM_TABLES_POOLED)
        .table_elements(limits::WASM_TABLE_ELEMENTS_POOLED)
        .max_memory_size(limits::WASM_MEMORY_MAX)
        .max_core_instance_size(limits::WASM_INSTANCE_BYTES_MAX)
        .linear_memory_keep_resident(limits::WASM_KEEP_RESIDENT_BYTES)
        .table_keep_resident(limits::WASM_KEEP_RESIDENT_BYTES);
    pool
}

fn number(engine: &Engine) -> u64 {
    let mut hasher = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hasher.finish()
}

fn deserialize(engine: &Engine, code: &Code<'_>) -> wasmtime::Result<Module> {
    match code {
        // SAFETY: `Engines::compile` has just written it.
        Code::Compiled(bytes) => unsafe { Module::deserialize(engine, bytes) },
        // SAFETY: an earlier process got it from `Engines::compile`, `Cache::load` has checked
        // that not a byte has changed since, and it lies in memory that nobody else writes to.
        Code::Kept(file) => unsafe { Module::deserialize_open_file(engine, file.try_clone()?) },
    }
}

fn check(bytes: &[u8]) -> Result<(), String> {
    match bytes.strip_prefix(MAGIC) {
        Some(rest) if rest.starts_with(MODULE_VERSION) => Ok(()),
        Some(rest) if rest.len() < MODULE_VERSION.len() => Err("is cut off".into()),
        Some(_) => Err("is a component or of an unknown version, not a module (version 1)".into()),
        None if bytes.is_empty() => Err("is empty".into()),
        None if std::str::from_utf8(bytes).is_err() => {
            Err("is neither a binary module, which begins with \"\\0asm\", nor the text of one"
                .into())
        }
        None => Ok(()),
    }
}

fn check_imports(module: &Module) -> Result<(), String> {
    match module.imports().find(|import| import.module() != WASI_MODULE) {
        Some(import) => Err(format!(
            "imports {:?} from {:?}; a WASI module has imports from {WASI_MODULE} alone",
            import.name(),
            import.module()
        )),
        None => Ok(()),
    }
}

fn check_start(module: &Module) -> Result<(), String> {
    match module.get_export(START) {
        Some(ExternType::Func(start)) if start.params().len() + start.results().len() == 0 => {
            Ok(())
        }
        Some(_) => Err(format!("exports {START} as something else than a function of nothing")),
        None => Err(format!("exports no {START}: it is a library, not a program")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engines() -> Engines {
        Engines::new(2).expect("this machine has what it needs")
    }

    fn load(text: &str) -> Result<Ready, String> {
        let engines = engines();
        let code = engines.compile(text.as_bytes())?;
        engines.load(&Code::Compiled(&code)).map_err(|error| match error {
            LoadError::Code(words) | LoadError::Module(words) => words,
        })
    }

    fn refused(text: &str) -> String {
        load(text).err().expect("no program")
    }

    #[test]
    fn what_is_no_program_is_refused_with_the_reason() {
        assert!(load(r#"(module (func (export "_start")))"#).is_ok());
        assert!(refused("(module)").starts_with("exports no _start"));
        assert!(refused(r#"(module (memory (export "_start") 1))"#).contains("something else"));
        assert!(refused(r#"(module (func (export "_start") (param i32)))"#).contains("else"));
        let native = r#"(module (import "env" "puts" (func)) (func (export "_start")))"#;
        assert!(refused(native).starts_with(r#"imports "puts" from "env""#));
        let unknown = r#"(module (import "wasi_snapshot_preview1" "fd_fly" (func))
            (func (export "_start")))"#;
        assert!(refused(unknown).contains("fd_fly"), "{}", refused(unknown));
    }

    #[test]
    fn garbage_of_every_kind_is_refused_with_the_reason() {
        let engines = engines();
        let said = |bytes: &[u8]| engines.compile(bytes).expect_err("garbage");
        assert_eq!(said(b""), "is empty");
        assert_eq!(said(b"\0asm\x01"), "is cut off");
        assert!(said(b"\0asm\x0d\0\x01\0").starts_with("is a component"));
        assert!(said(b"\x7fELF\xff").starts_with("is neither"));
        assert!(said(b"#!/bin/sh").contains("not the text of a module"));
        assert!(said(b"\0asm\x01\0\0\0\x01\xff").contains("not a module that can run"));
        assert!(said(b"(component)").contains("not the text of a module"));
    }

    #[test]
    fn a_module_that_does_not_fit_the_pool_is_loaded_without_it() {
        let many = r#"(module (memory 1) (memory 1) (func (export "_start")))"#;
        assert!(load(many).is_ok());
        let large = r#"(module (table 2000000 funcref) (func (export "_start")))"#;
        assert!(load(large).is_ok());
    }

    #[test]
    fn code_of_another_kind_is_known_as_such() {
        assert!(matches!(engines().load(&Code::Compiled(b"no code")), Err(LoadError::Code(_))));
    }
}

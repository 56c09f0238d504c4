//! The C types of the documented API, as `qmem_types.h` declares them. Read by the other files of `ffi`; holds no code.
//! Fields that C fills with an enumerator or a bool are `MaybeUninit`: C may put any bytes there, so they are checked by
//! `guard` before they become a Rust value.
#![forbid(unsafe_code)]

use core::ffi::c_void;
use core::mem::MaybeUninit;

/// What a call answers: 0 is success, every failure is negative. `qmem_last_error` says the same in words.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum memory_status_t {
    /// Done.
    MEMORY_STATUS_OK = 0,
    /// An argument is NULL, out of range or an unknown enumerator; nothing was changed.
    MEMORY_STATUS_INVALID_ARGUMENT = -1,
    /// The memory is not there, or the budget does not allow it.
    MEMORY_STATUS_OUT_OF_MEMORY = -2,
    /// The subsystem is not running.
    MEMORY_STATUS_NOT_INITIALIZED = -3,
    /// The subsystem runs already.
    MEMORY_STATUS_ALREADY_INITIALIZED = -4,
    /// In the wrong state for this call: something must be stopped, cleaned or freed first.
    MEMORY_STATUS_BUSY = -5,
    /// Waited as long as was allowed.
    MEMORY_STATUS_TIMEOUT = -6,
    /// Not in this version, or not on this machine; the message says which.
    MEMORY_STATUS_UNSUPPORTED = -7,
    /// The thing asked about does not exist.
    MEMORY_STATUS_NOT_FOUND = -8,
    /// A bound that was set would be passed.
    MEMORY_STATUS_LIMIT = -9,
    /// The operation was ended by a handler.
    MEMORY_STATUS_ABORTED = -10,
    /// The operating system failed a read or a write.
    MEMORY_STATUS_IO = -16,
    /// Data failed its checksum or check.
    MEMORY_STATUS_CORRUPT = -17,
    /// A device failed.
    MEMORY_STATUS_DEVICE = -18,
    /// A fault of qmem itself.
    MEMORY_STATUS_INTERNAL = -127,
}

/// What kind of failure `handle_memory_error` is told of.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum memory_error_t {
    /// No failure.
    MEMORY_ERROR_NONE = 0,
    /// An allocation was not granted.
    MEMORY_ERROR_ALLOCATION,
    /// A cache failed.
    MEMORY_ERROR_CACHE,
    /// A resource or a quota is exhausted.
    MEMORY_ERROR_RESOURCES,
    /// Data or metadata is damaged.
    MEMORY_ERROR_CORRUPTION,
    /// Blocks were left over.
    MEMORY_ERROR_LEAK,
    /// Swap or checkpoint I/O failed.
    MEMORY_ERROR_IO,
    /// A device failed.
    MEMORY_ERROR_DEVICE,
}

/// Where allocations come from.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum allocation_type_t {
    /// The heap.
    ALLOC_CLASSICAL = 0,
    /// Paged buffers, which may be larger than memory. Requests below 64 KiB come from the heap: a chunk would waste memory.
    ALLOC_QUANTUM,
    /// The heap below 1 MiB, paged buffers from it.
    ALLOC_HYBRID,
    /// Device memory. MEMORY_STATUS_UNSUPPORTED in this version.
    ALLOC_GPU,
    /// The interface given to `qmem_register_interface`.
    ALLOC_CUSTOM,
}

/// How chunks and resources are placed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum memory_strategy_t {
    /// Chosen per chunk or resource from what is measured.
    STRATEGY_ADAPTIVE = 0,
    /// Short faults.
    STRATEGY_LATENCY,
    /// Deep read-ahead and large batches.
    STRATEGY_THROUGHPUT,
    /// Least memory. Bets on compression when memory is granted: a bet that fails ends in SIGBUS on the access that lost it.
    STRATEGY_COMPACT,
}

/// For `initialize_memory_allocation`.
#[repr(C)]
pub struct memory_allocation_config_t {
    /// Where allocations come from.
    pub allocation_type: MaybeUninit<allocation_type_t>,
    /// How chunks are placed.
    pub strategy: MaybeUninit<memory_strategy_t>,
    /// Hard bound on bytes resident through qmem (heap, frames, compressed pool). 0, or more than there is: QMEM_BUDGET (with 0
    /// only), else what the cgroup or machine allows less a reserve. At least 1 MiB; 32 MiB with ALLOC_QUANTUM and ALLOC_HYBRID.
    pub max_memory: usize,
    /// Cold chunks may be compressed in RAM.
    pub enable_compression: MaybeUninit<bool>,
    /// Equal chunks may share one copy (bytes are compared).
    pub enable_deduplication: MaybeUninit<bool>,
    /// Cold chunks may go to the swap file.
    pub enable_swapping: MaybeUninit<bool>,
    /// Must be zero.
    pub reserved: [u64; 4],
}

/// Which levels the cache optimisation works on.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum cache_optimization_type_t {
    /// The key/value cache.
    OPT_CLASSICAL = 0,
    /// And the pager's frames, with prefetch in strides of 2^k.
    OPT_QUANTUM,
    /// And a device level.
    OPT_GPU,
    /// And a remote level.
    OPT_DISTRIBUTED,
    /// And a registered level.
    OPT_CUSTOM,
}

/// Which entries a cache keeps.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum cache_strategy_t {
    /// The best of the others, as measured.
    CACHE_ADAPTIVE = 0,
    /// Least recently used goes first.
    CACHE_LRU,
    /// Least frequently used goes first.
    CACHE_LFU,
    /// Oldest goes first.
    CACHE_FIFO,
    /// S3-FIFO.
    CACHE_S3FIFO,
    /// SIEVE.
    CACHE_SIEVE,
    /// W-TinyLFU.
    CACHE_WTINYLFU,
    /// LIRS.
    CACHE_LIRS,
}

/// For `initialize_cache_optimization`.
#[repr(C)]
pub struct cache_optimization_config_t {
    /// Which levels take part.
    pub optimization_type: MaybeUninit<cache_optimization_type_t>,
    /// Bytes of the first level; 0 = 32 MiB.
    pub cache_size: usize,
    /// Which entries are kept.
    pub strategy: MaybeUninit<cache_strategy_t>,
    /// false: no prefetch, by cache or pager.
    pub enable_prefetching: MaybeUninit<bool>,
    /// false: hit and miss counters stay 0 and cost nothing.
    pub enable_monitoring: MaybeUninit<bool>,
    /// Must be zero.
    pub reserved: [u64; 4],
}

/// What resources are balanced by.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum management_type_t {
    /// Their number.
    MANAGE_CLASSICAL = 0,
    /// Bytes of state.
    MANAGE_QUANTUM,
    /// Free device bytes.
    MANAGE_GPU,
    /// Outstanding requests per remote endpoint.
    MANAGE_NETWORK,
    /// A callback.
    MANAGE_CUSTOM,
}

/// For `initialize_resource_management`.
#[repr(C)]
pub struct resource_management_config_t {
    /// What resources are balanced by.
    pub management_type: MaybeUninit<management_type_t>,
    /// Placement: adaptive = least loaded, latency = nearest NUMA node, throughput = interleaved, compact = one after the other.
    pub strategy: MaybeUninit<memory_strategy_t>,
    /// Registered at once; 0 = 1024.
    pub max_resources: usize,
    /// Keep a usage history per resource.
    pub enable_monitoring: MaybeUninit<bool>,
    /// Rebalance quotas in the background.
    pub enable_optimization: MaybeUninit<bool>,
    /// Must be zero.
    pub reserved: [u64; 4],
}

/// Which knobs the tuner moves.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum tuning_type_t {
    /// Every knob.
    TUNE_PERFORMANCE = 0,
    /// The pager's, judged on chunk traffic.
    TUNE_QUANTUM,
    /// The heap's.
    TUNE_MEMORY,
    /// The caches'.
    TUNE_CACHE,
    /// The quotas.
    TUNE_RESOURCE,
    /// Every knob, judged by a callback.
    TUNE_CUSTOM,
}

/// How far the tuner goes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum optimization_level_t {
    /// Measures and reports, moves nothing.
    OPT_NONE = 0,
    /// One step up or down.
    OPT_BASIC,
    /// Several steps.
    OPT_ADVANCED,
    /// The whole range.
    OPT_AGGRESSIVE,
}

/// What the tuner judges by; none set = all, equally weighted.
#[repr(C)]
pub struct memory_tuning_metrics_t {
    /// The 99th percentile of fault and allocation time.
    pub latency: MaybeUninit<bool>,
    /// Bytes or operations per second.
    pub throughput: MaybeUninit<bool>,
    /// Useful bytes per resident byte.
    pub efficiency: MaybeUninit<bool>,
}

/// For `initialize_memory_tuning`.
#[repr(C)]
pub struct memory_tuning_config_t {
    /// Which knobs move.
    pub tuning_type: MaybeUninit<tuning_type_t>,
    /// How far.
    pub optimization_level: MaybeUninit<optimization_level_t>,
    /// What is judged.
    pub target_metrics: memory_tuning_metrics_t,
    /// Keep what was learned in QMEM_STATE_DIR and start from it.
    pub enable_learning: MaybeUninit<bool>,
    /// Must be zero.
    pub reserved: [u64; 4],
}

/// Which experts adapt.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum adaptation_type_t {
    /// The cache's.
    ADAPT_CLASSICAL = 0,
    /// And the pager's experts for eviction and prefetch.
    ADAPT_QUANTUM,
    /// Registered ones.
    ADAPT_CUSTOM,
}

/// For `initialize_adaptive_memory`.
#[repr(C)]
pub struct adaptive_memory_config_t {
    /// Which experts take part.
    pub adaptation_type: MaybeUninit<adaptation_type_t>,
    /// Of the regret update, in (0, 1]; 0 = 0.1.
    pub learning_rate: f64,
    /// Smallest advantage in miss ratio that switches the leading expert, in [0, 1]; 0 = 0.001.
    pub threshold: f64,
    /// Experts for strides of 2^k and loops take part.
    pub enable_quantum: MaybeUninit<bool>,
    /// Allows the device tier where there is one; no demand for one.
    pub use_gpu: MaybeUninit<bool>,
    /// Must be zero.
    pub reserved: [u64; 4],
}

/// How an ensemble decides.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum aggregation_method_t {
    /// Votes weighted by success.
    ENSEMBLE_WEIGHTED = 0,
    /// One manager, one vote.
    ENSEMBLE_MAJORITY,
    /// The best so far decides.
    ENSEMBLE_BEST,
}

/// How different two managers are.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum diversity_measure_t {
    /// Not measured.
    DIVERSITY_NONE = 0,
    /// Share of differing victims.
    DIVERSITY_DISAGREEMENT,
    /// Quantum Jensen–Shannon divergence of the victim distributions as density matrices.
    DIVERSITY_QUANTUM,
}

/// For `initialize_memory_ensemble`.
#[repr(C)]
pub struct ensemble_memory_config_t {
    /// 1 to 16; 0 = 5.
    pub num_managers: usize,
    /// How they decide.
    pub aggregation_method: MaybeUninit<aggregation_method_t>,
    /// How their difference is measured.
    pub diversity_measure: MaybeUninit<diversity_measure_t>,
    /// Experts for strides of 2^k and loops take part.
    pub enable_quantum: MaybeUninit<bool>,
    /// Must be zero.
    pub reserved: [u64; 4],
}

/// How much is recorded.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum monitoring_level_t {
    /// Nothing.
    MONITOR_NONE = 0,
    /// Counters.
    MONITOR_BASIC,
    /// And histograms, events and numbers per region.
    MONITOR_DETAILED,
}

/// For `initialize_memory_system`.
#[repr(C)]
pub struct memory_system_config_t {
    /// true: starts every subsystem that does not run yet; false: adopts those that run.
    pub enable_all_features: MaybeUninit<bool>,
    /// Starts the tuner.
    pub auto_optimization: MaybeUninit<bool>,
    /// How much is recorded.
    pub monitoring_level: MaybeUninit<monitoring_level_t>,
    /// Infidelity that lossy compression may spend in this process, in [0, 1); 0 = each buffer's own tolerance alone.
    pub error_budget: f64,
    /// Must be zero.
    pub reserved: [u64; 4],
}

/// What to try when an allocation cannot be had as asked.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum fallback_strategy_t {
    /// Nothing.
    FALLBACK_NONE = 0,
    /// The heap, inside the budget.
    FALLBACK_CLASSICAL,
    /// Swapping.
    FALLBACK_SWAP,
}

/// For `initialize_memory_recovery`.
#[repr(C)]
pub struct recovery_config_t {
    /// Per failed operation; 0 = 3.
    pub max_retries: u32,
    /// Calls between checkpoints of all paged buffers; 0 = no checkpoints.
    pub checkpoint_interval: u32,
    /// Write a record of each failure.
    pub enable_logging: MaybeUninit<bool>,
    /// What is tried.
    pub fallback_strategy: MaybeUninit<fallback_strategy_t>,
    /// Must be zero.
    pub reserved: [u64; 4],
}

/// Numbers of the process or of one buffer. Bytes, unless said otherwise. Each is exact; the set is not one instant's.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct memory_stats_t {
    /// Ever given.
    pub total_allocated: usize,
    /// The most that was live at once.
    pub peak_allocated: usize,
    /// Blocks ever given.
    pub num_allocations: usize,
    /// Blocks taken back.
    pub num_frees: usize,
    /// The largest block ever given.
    pub largest_allocation: usize,
    /// 1 - live bytes / resident bytes of the heap, in [0, 1].
    pub fragmentation: f64,
    /// Lookups that a cache answered; 0 in this version.
    pub cache_hits: usize,
    /// Lookups that no cache answered; 0 in this version.
    pub cache_misses: usize,
    /// Live now.
    pub current_allocated: usize,
    /// In RAM through qmem now.
    pub resident_bytes: usize,
    /// The most of that.
    pub peak_resident_bytes: usize,
    /// The bound on it; 0 = none is set.
    pub budget_bytes: usize,
    /// Size of the paged buffers as the program sees them.
    pub logical_bytes: usize,
    /// What compressed chunks occupy in RAM.
    pub compressed_bytes: usize,
    /// Saved by sharing equal chunks.
    pub deduplicated_bytes: usize,
    /// Logical bytes that lie in the swap file.
    pub swapped_bytes: usize,
    /// Accesses that found a chunk not resident (a number).
    pub page_faults: usize,
    /// Chunks moved out of their frame (a number).
    pub evictions: usize,
    /// Infidelity spent by lossy compression, in the unit of error_budget: what all buffers have come to at most, ended ones too.
    pub error_spent: f64,
    /// Zero.
    pub reserved: [u64; 8],
}

/// One memory system behind nine function pointers; `qmem_unified_interface` gives qmem's own. Any thread may call any of them.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct unified_memory_interface_t {
    /// As `qmem_allocate`, from the unified pool.
    pub allocate: Option<unsafe extern "C" fn(size: usize, alignment: usize) -> *mut c_void>,
    /// As `qmem_free`.
    pub free: Option<unsafe extern "C" fn(ptr: *mut c_void)>,
    /// As `qmem_realloc`.
    pub realloc: Option<unsafe extern "C" fn(ptr: *mut c_void, size: usize) -> *mut c_void>,
    /// As `qmem_allocate_geometric`, from the unified pool.
    pub allocate_geometric: Option<unsafe extern "C" fn(dimensions: *mut usize, num_dims: usize) -> *mut c_void>,
    /// As `qmem_allocate_hierarchical`, from the unified pool.
    pub allocate_hierarchical: Option<unsafe extern "C" fn(size: usize, tolerance: f64) -> *mut c_void>,
    /// As `qmem_allocate_streaming`, from the unified pool.
    pub allocate_streaming: Option<unsafe extern "C" fn(total_size: usize, chunk_size: usize) -> *mut c_void>,
    /// Enters a block from elsewhere into statistics and the leak report; false if NULL, empty or overlapping a known block.
    pub track_allocation: Option<unsafe extern "C" fn(ptr: *mut c_void, size: usize) -> bool>,
    /// Takes it out again; false if it was not tracked.
    pub untrack_allocation: Option<unsafe extern "C" fn(ptr: *mut c_void) -> bool>,
    /// As `qmem_get_stats`.
    pub get_stats: Option<unsafe extern "C" fn(stats: *mut memory_stats_t)>,
}

/// For `initialize_unified_memory`.
#[repr(C)]
pub struct unified_pool_config_t {
    /// Reserved up front; 0 without growth = max_size. At most max_size where that is set.
    pub initial_size: usize,
    /// Bounds the resident bytes of the pool; 0 = the budget.
    pub max_size: usize,
    /// false: initial_size is all there is.
    pub enable_growth: MaybeUninit<bool>,
    /// Rows of geometric arrays are padded against set conflicts; false: dense.
    pub use_geometric_layout: MaybeUninit<bool>,
    /// Streaming buffers may use the swap file; false: allocate_streaming fails.
    pub enable_streaming: MaybeUninit<bool>,
    /// Default unit of streaming I/O; 0 = 2 MiB, else a power of two from 64 KiB to 1 GiB.
    pub chunk_size: usize,
    /// Default tolerance of hierarchical allocations, in [0, 1); 0 = lossless.
    pub compression_tolerance: f64,
}

/// A complex number with the layout of `double complex` and `std::complex<double>`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct qmem_complex_t {
    /// Real part.
    pub re: f64,
    /// Imaginary part.
    pub im: f64,
}

/// One tensor of a network.
#[repr(C)]
pub struct tree_tensor_node {
    /// Unique in its network.
    pub id: usize,
    /// Bond rank.
    pub rank: usize,
    /// Length of `children`.
    pub num_children: usize,
    /// Length of `dimensions`.
    pub num_dimensions: usize,
    /// Size of each axis.
    pub dimensions: *mut usize,
    /// The nodes below.
    pub children: *mut *mut tree_tensor_node,
    /// The node above; NULL at the root.
    pub parent: *mut tree_tensor_node,
    /// Row-major, the product of `dimensions` elements, on the network's interface.
    pub data: *mut qmem_complex_t,
    /// No children.
    pub is_leaf: bool,
    /// `data` is a hierarchical allocation.
    pub use_hierarchical: bool,
}
/// One tensor of a network.
pub type tree_tensor_node_t = tree_tensor_node;

/// What contractions cost.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct tensor_network_metrics_t {
    /// Done so far.
    pub num_contractions: usize,
    /// The most bytes they held.
    pub peak_memory_usage: usize,
    /// Seconds.
    pub total_time: f64,
    /// Seconds spent choosing an order.
    pub optimization_time: f64,
    /// Seconds spent contracting.
    pub contraction_time: f64,
}

/// A tree of tensors on one memory interface.
#[repr(C)]
pub struct tree_tensor_network {
    /// The topmost node.
    pub root: *mut tree_tensor_node_t,
    /// Nodes in the tree.
    pub num_nodes: usize,
    /// Largest bond that truncation keeps.
    pub max_rank: usize,
    /// Leaves' qubits.
    pub num_qubits: usize,
    /// Relative error that truncation may make.
    pub tolerance: f64,
    /// Where node data lives.
    pub memory: *mut unified_memory_interface_t,
    /// What contractions cost.
    pub metrics: tensor_network_metrics_t,
}
/// A tree of tensors on one memory interface.
pub type tree_tensor_network_t = tree_tensor_network;

/// A tensor's data, chunk by chunk.
pub struct tensor_stream_t {
    _opaque: [u8; 0],
}

/// What the bytes of a buffer are.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum qmem_element_t {
    /// Any bytes: lossless always.
    QMEM_ELEMENT_BYTES = 0,
    /// Two floats: `float complex`.
    QMEM_ELEMENT_C64,
    /// Two doubles: `double complex`.
    QMEM_ELEMENT_C128,
    /// Floats.
    QMEM_ELEMENT_F32,
    /// Doubles.
    QMEM_ELEMENT_F64,
}

//! Chapter "tree tensor networks" of <quantum_memory.h>. This version has none: arguments are checked, then refused. No network,
//! node or stream was ever given out, so nothing behind such a pointer is read.

use super::guard::{absent, fraction, reference, status, value, within};
use super::types::*;
use crate::error::Error;
use core::ptr::null_mut;

/// A network for `num_qubits` qubits. NULL in this version.
#[unsafe(no_mangle)]
pub extern "C" fn create_tree_tensor_network(num_qubits: usize, max_rank: usize, tolerance: f64) -> *mut tree_tensor_network_t {
    value(null_mut(), || {
        within(num_qubits, num_qubits > 0, "num_qubits", "1 and more")?;
        within(max_rank, max_rank > 0, "max_rank", "1 and more")?;
        fraction(tolerance, "tolerance")?;
        Err(absent("create_tree_tensor_network"))
    })
}

fn given<T>(pointer: *const T, name: &str) -> Result<(), Error> {
    // SAFETY: nothing is read through the reference, which is dropped at once; only NULL and alignment matter here, and
    // MaybeUninit<u8> is valid at any address that a program can name.
    unsafe { reference(pointer.cast::<core::mem::MaybeUninit<u8>>(), name)? };
    Ok(())
}

/// Frees a network with its nodes; NULL is fine.
#[unsafe(no_mangle)]
pub extern "C" fn destroy_tree_tensor_network(network: *mut tree_tensor_network_t) {
    value((), || if network.is_null() { Ok(()) } else { Err(absent("destroy_tree_tensor_network")) });
}

/// Adds a node with `data` (NULL: zeros). NULL in this version.
///
/// # Safety
/// `dimensions` is NULL or holds `num_dimensions` numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn add_tree_tensor_node(
    network: *mut tree_tensor_network_t,
    dimensions: *const usize,
    num_dimensions: usize,
    data: *const qmem_complex_t,
) -> *mut tree_tensor_node_t {
    let _ = data;
    value(null_mut(), || {
        given(network, "network")?;
        given(dimensions, "dimensions")?;
        within(num_dimensions, (1..=16).contains(&num_dimensions), "num_dimensions", "1 to 16")?;
        Err(absent("add_tree_tensor_node"))
    })
}

/// Bonds the child's last axis with the parent's next free one. MEMORY_STATUS_UNSUPPORTED in this version.
#[unsafe(no_mangle)]
pub extern "C" fn connect_tree_tensor_nodes(
    network: *mut tree_tensor_network_t,
    parent: *mut tree_tensor_node_t,
    child: *mut tree_tensor_node_t,
) -> memory_status_t {
    status(|| {
        given(network, "network")?;
        given(parent, "parent")?;
        given(child, "child")?;
        Err(absent("connect_tree_tensor_nodes"))
    })
}

/// Sums the bond between two nodes. NULL in this version.
#[unsafe(no_mangle)]
pub extern "C" fn contract_tree_tensor_nodes(
    network: *mut tree_tensor_network_t,
    a: *mut tree_tensor_node_t,
    b: *mut tree_tensor_node_t,
) -> *mut tree_tensor_node_t {
    value(null_mut(), || {
        given(network, "network")?;
        given(a, "a")?;
        given(b, "b")?;
        Err(absent("contract_tree_tensor_nodes"))
    })
}

/// Contracts the whole tree; the result is the caller's. MEMORY_STATUS_UNSUPPORTED in this version.
#[unsafe(no_mangle)]
pub extern "C" fn contract_full_tree_network(
    network: *mut tree_tensor_network_t,
    result: *mut *mut qmem_complex_t,
    num_elements: *mut usize,
) -> memory_status_t {
    status(|| {
        given(network, "network")?;
        given(result, "result")?;
        given(num_elements, "num_elements")?;
        Err(absent("contract_full_tree_network"))
    })
}

/// Fits bonds to max_rank and tolerance. MEMORY_STATUS_UNSUPPORTED in this version.
#[unsafe(no_mangle)]
pub extern "C" fn adapt_bond_dimensions(network: *mut tree_tensor_network_t) -> memory_status_t {
    status(|| {
        given(network, "network")?;
        Err(absent("adapt_bond_dimensions"))
    })
}

/// A node's data chunk by chunk. NULL in this version.
#[unsafe(no_mangle)]
pub extern "C" fn create_tensor_stream(node: *mut tree_tensor_node_t, chunk_size: usize) -> *mut tensor_stream_t {
    value(null_mut(), || {
        given(node, "node")?;
        crate::system::unified::chunk_size(chunk_size)?;
        Err(absent("create_tensor_stream"))
    })
}

/// Ends a stream; NULL is fine.
#[unsafe(no_mangle)]
pub extern "C" fn destroy_tensor_stream(stream: *mut tensor_stream_t) {
    value((), || if stream.is_null() { Ok(()) } else { Err(absent("destroy_tensor_stream")) });
}

/// The next chunk, the stream's until the next call. MEMORY_STATUS_UNSUPPORTED in this version.
#[unsafe(no_mangle)]
pub extern "C" fn stream_next_chunk(
    stream: *mut tensor_stream_t,
    chunk: *mut *const qmem_complex_t,
    num_elements: *mut usize,
) -> memory_status_t {
    status(|| {
        given(stream, "stream")?;
        given(chunk, "chunk")?;
        given(num_elements, "num_elements")?;
        Err(absent("stream_next_chunk"))
    })
}

/// Contracts two streams into a node. MEMORY_STATUS_UNSUPPORTED in this version.
#[unsafe(no_mangle)]
pub extern "C" fn contract_tensor_streams(
    a: *mut tensor_stream_t,
    b: *mut tensor_stream_t,
    out: *mut tree_tensor_node_t,
) -> memory_status_t {
    status(|| {
        given(a, "a")?;
        given(b, "b")?;
        given(out, "out")?;
        Err(absent("contract_tensor_streams"))
    })
}

/* qmem for C++17 and later, header only, on the C API of <qmem.h>: memory resources, allocators, owning pointers, pools and object
   pools. Functions that cannot do what they are asked throw: std::bad_alloc where memory is not to be had (std::bad_array_new_length
   where no object can be as large), qmem::error with status and words otherwise. Any thread may use any object, but one object is
   moved, assigned or destroyed by one thread while nobody else uses it. */
#ifndef QMEM_HPP
#define QMEM_HPP

#include <qmem.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <initializer_list>
#include <limits>
#include <memory>
#include <memory_resource>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

namespace qmem {

/// This thread's last failure in words.
inline std::string last_error() {
  std::string words(qmem_last_error(nullptr, 0), '\0');
  if (!words.empty()) {
    words.resize(words.size() + 1); // room for the terminating NUL
    qmem_last_error(&words[0], words.size());
    words.pop_back();
  }
  return words;
}

/// A call of qmem's that failed.
class error : public std::runtime_error {
public:
  explicit error(memory_status_t status) : std::runtime_error(last_error()), status_(status) {}
  error(memory_status_t status, const std::string &words) : std::runtime_error(words), status_(status) {}
  memory_status_t status() const noexcept { return status_; }

private:
  memory_status_t status_;
};

/// Throws what a status stands for, if it is a failure.
inline void check(memory_status_t status) {
  if (status == MEMORY_STATUS_OUT_OF_MEMORY)
    throw std::bad_alloc();
  if (status != MEMORY_STATUS_OK)
    throw error(status);
}

namespace detail {

inline void *given(void *block) {
  if (block == nullptr)
    throw std::bad_alloc();
  return block;
}

/// Memory as `qmem_allocate` gives it: by the configured allocation type, the heap unless one was.
struct heap {
  static void *allocate(std::size_t bytes, std::size_t alignment) { return given(qmem_allocate(bytes, alignment)); }
};

/// Paged memory, zeroed; requests below 64 KiB from the heap, since a paged buffer has its own chunks.
struct paged {
  static constexpr std::size_t least = std::size_t(64) << 10;
  static void *allocate(std::size_t bytes, std::size_t alignment) {
    if (bytes < least)
      return heap::allocate(bytes, alignment);
    void *block = given(qmem_allocate_streaming(bytes, 0));
    if (reinterpret_cast<std::uintptr_t>(block) % alignment != 0) {
      qmem_free(block); // beyond a chunk's alignment
      throw std::bad_alloc();
    }
    return block;
  }
};

template <class T> std::size_t bytes_of(std::size_t count) {
  if (count > static_cast<std::size_t>(std::numeric_limits<std::ptrdiff_t>::max()) / sizeof(T))
    throw std::bad_array_new_length();
  return count * sizeof(T);
}

/// Does the pool have a block for this, at that alignment? Its blocks lie at multiples of the largest power of two in their size,
/// from 16 to 64 KiB.
inline bool pool_serves(const qmem_pool_t *pool, std::size_t bytes, std::size_t alignment) noexcept {
  if (pool == nullptr)
    return false;
  const std::size_t size = qmem_pool_block_size(pool, bytes), stride = (size + 15) / 16 * 16;
  return size != 0 && (alignment <= 16 || (alignment <= (std::size_t(64) << 10) && stride % alignment == 0));
}

} // namespace detail

/// A std::pmr::memory_resource over what `Source` gives; all of one kind are equal.
template <class Source> class basic_resource final : public std::pmr::memory_resource {
  void *do_allocate(std::size_t bytes, std::size_t alignment) override { return Source::allocate(bytes, alignment); }
  void do_deallocate(void *block, std::size_t, std::size_t) override { qmem_free(block); }
  bool do_is_equal(const std::pmr::memory_resource &other) const noexcept override {
    return dynamic_cast<const basic_resource *>(&other) != nullptr;
  }
};
using heap_resource = basic_resource<detail::heap>;
using paged_resource = basic_resource<detail::paged>;

/// The one of each that lives as long as the program.
inline std::pmr::memory_resource *heap_memory() noexcept {
  static heap_resource *const resource = new heap_resource; // outlives every container
  return resource;
}
inline std::pmr::memory_resource *paged_memory() noexcept {
  static paged_resource *const resource = new paged_resource;
  return resource;
}

/// An allocator without state over what `Source` gives.
template <class T, class Source> class basic_allocator {
public:
  using value_type = T;
  using is_always_equal = std::true_type;
  using propagate_on_container_move_assignment = std::true_type;
  using propagate_on_container_swap = std::true_type;
  template <class U> struct rebind {
    using other = basic_allocator<U, Source>;
  };
  basic_allocator() noexcept = default;
  template <class U> basic_allocator(const basic_allocator<U, Source> &) noexcept {}
  [[nodiscard]] T *allocate(std::size_t count) {
    return static_cast<T *>(Source::allocate(detail::bytes_of<T>(count), alignof(T)));
  }
  void deallocate(T *block, std::size_t) noexcept { qmem_free(block); }
  template <class U> friend bool operator==(const basic_allocator &, const basic_allocator<U, Source> &) noexcept { return true; }
  template <class U> friend bool operator!=(const basic_allocator &, const basic_allocator<U, Source> &) noexcept { return false; }
};
template <class T> using allocator = basic_allocator<T, detail::heap>;
template <class T> using paged_allocator = basic_allocator<T, detail::paged>;

/// A pool of blocks, owned: ends with this object, which must be after all its blocks. Empty after it was moved from.
class pool {
public:
  /// The default sizes and bounds.
  pool() : pool(qmem_pool_config_t{}) {}
  /// Blocks of these sizes, at most `max_capacity` of each (0: the default).
  explicit pool(std::initializer_list<std::size_t> block_sizes, std::size_t max_capacity = 0, bool thread_cache = true)
      : pool(config(block_sizes, max_capacity, thread_cache)) {}
  explicit pool(const qmem_pool_config_t &config) : handle_(qmem_pool_create(&config)) {
    if (handle_ == nullptr)
      throw error(MEMORY_STATUS_INVALID_ARGUMENT);
  }
  pool(pool &&other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  pool &operator=(pool &&other) noexcept {
    if (this != &other)
      reset(std::exchange(other.handle_, nullptr));
    return *this;
  }
  ~pool() { reset(); }

  /// The smallest block that holds `bytes`; std::bad_alloc if there is none.
  [[nodiscard]] void *allocate(std::size_t bytes) { return detail::given(qmem_pool_allocate(handle_, bytes)); }
  /// As `allocate`, but NULL.
  [[nodiscard]] void *try_allocate(std::size_t bytes) noexcept { return qmem_pool_allocate(handle_, bytes); }
  void release(void *block) noexcept { qmem_pool_release(handle_, block); }
  void warm(std::size_t bytes, std::size_t blocks) { check(qmem_pool_warm(handle_, bytes, blocks)); }
  void trim() { check(qmem_pool_trim(handle_)); }
  memory_stats_t stats() const {
    memory_stats_t numbers;
    check(qmem_pool_get_stats(handle_, &numbers));
    return numbers;
  }
  /// For the functions of <qmem.h>; NULL if this is empty.
  qmem_pool_t *get() const noexcept { return handle_; }
  explicit operator bool() const noexcept { return handle_ != nullptr; }
  /// Gives up the handle without ending the pool.
  [[nodiscard]] qmem_pool_t *release() noexcept { return std::exchange(handle_, nullptr); }
  /// Ends the pool, and owns another one, if any.
  void reset(qmem_pool_t *other = nullptr) noexcept {
    if (qmem_pool_t *old = std::exchange(handle_, other))
      qmem_pool_destroy(old);
  }
  void swap(pool &other) noexcept { std::swap(handle_, other.handle_); }
  friend void swap(pool &one, pool &other) noexcept { one.swap(other); }

private:
  static qmem_pool_config_t config(std::initializer_list<std::size_t> sizes, std::size_t most, bool cache) noexcept {
    qmem_pool_config_t config{};
    config.block_sizes = sizes.begin();
    config.num_block_sizes = sizes.size();
    config.max_capacity = most;
    config.initial_capacity = most != 0 && most < 16 ? most : 16;
    config.thread_cache = cache;
    return config;
  }
  qmem_pool_t *handle_;
};

/// A std::pmr::memory_resource over a pool, which outlives it. What no block of the pool holds, or not at that alignment, comes from
/// `upstream`: the heap; std::pmr::null_memory_resource() refuses it. An exhausted pool is std::bad_alloc.
class pool_resource final : public std::pmr::memory_resource {
public:
  explicit pool_resource(qmem_pool_t *pool, std::pmr::memory_resource *upstream = heap_memory()) noexcept
      : pool_(pool), upstream_(upstream) {}
  explicit pool_resource(const qmem::pool &pool, std::pmr::memory_resource *upstream = heap_memory()) noexcept
      : pool_resource(pool.get(), upstream) {}
  qmem_pool_t *get() const noexcept { return pool_; }
  std::pmr::memory_resource *upstream_resource() const noexcept { return upstream_; }

private:
  void *do_allocate(std::size_t bytes, std::size_t alignment) override {
    if (!detail::pool_serves(pool_, bytes, alignment))
      return upstream_->allocate(bytes, alignment);
    return detail::given(qmem_pool_allocate(pool_, bytes));
  }
  void do_deallocate(void *block, std::size_t bytes, std::size_t alignment) override {
    if (!detail::pool_serves(pool_, bytes, alignment))
      upstream_->deallocate(block, bytes, alignment);
    else
      qmem_pool_release(pool_, block);
  }
  bool do_is_equal(const std::pmr::memory_resource &other) const noexcept override {
    const pool_resource *same = dynamic_cast<const pool_resource *>(&other);
    return same != nullptr && same->pool_ == pool_ && *same->upstream_ == *upstream_;
  }
  qmem_pool_t *pool_;
  std::pmr::memory_resource *upstream_;
};

/// An allocator over a pool, which outlives its blocks; what no block of the pool holds comes from the heap. Equal where the pool is.
/// It goes with the elements when containers are moved or swapped; a container that is assigned a copy keeps its own.
template <class T> class pool_allocator {
public:
  using value_type = T;
  using is_always_equal = std::false_type;
  using propagate_on_container_copy_assignment = std::false_type;
  using propagate_on_container_move_assignment = std::true_type;
  using propagate_on_container_swap = std::true_type;
  /// Without a pool all comes from the heap: for what a library makes by itself, such as a string's parts.
  pool_allocator() noexcept = default;
  explicit pool_allocator(qmem_pool_t *pool) noexcept : pool_(pool) {}
  explicit pool_allocator(const pool &pool) noexcept : pool_(pool.get()) {}
  template <class U> pool_allocator(const pool_allocator<U> &other) noexcept : pool_(other.get()) {}
  [[nodiscard]] T *allocate(std::size_t count) {
    const std::size_t bytes = detail::bytes_of<T>(count);
    if (!detail::pool_serves(pool_, bytes, alignof(T)))
      return static_cast<T *>(detail::heap::allocate(bytes, alignof(T)));
    return static_cast<T *>(detail::given(qmem_pool_allocate(pool_, bytes)));
  }
  void deallocate(T *block, std::size_t) noexcept { qmem_free(block); }
  qmem_pool_t *get() const noexcept { return pool_; }
  template <class U> friend bool operator==(const pool_allocator &one, const pool_allocator<U> &other) noexcept {
    return one.get() == other.get();
  }
  template <class U> friend bool operator!=(const pool_allocator &one, const pool_allocator<U> &other) noexcept {
    return one.get() != other.get();
  }

private:
  qmem_pool_t *pool_ = nullptr;
};

/// Gives a block of any kind back, without a destructor: for `std::unique_ptr<void, qmem::free_delete>` around blocks of the C API.
struct free_delete {
  void operator()(void *block) const noexcept { qmem_free(block); }
};

/// Destroys an object in a block of any kind, and gives the block back.
template <class T> struct destroy_delete {
  void operator()(T *object) const noexcept {
    object->~T();
    qmem_free(object);
  }
};

/// The same for an array of known length.
template <class T> class destroy_delete<T[]> {
public:
  destroy_delete() noexcept = default;
  explicit destroy_delete(std::size_t count) noexcept : count_(count) {}
  std::size_t size() const noexcept { return count_; }
  void operator()(T *objects) const noexcept {
    std::destroy_n(objects, count_);
    qmem_free(objects);
  }

private:
  std::size_t count_ = 0;
};

template <class T> using unique_ptr = std::unique_ptr<T, destroy_delete<T>>;

namespace detail {

template <class T, class... Arguments> unique_ptr<T> constructed(void *block, Arguments &&...arguments) {
  std::unique_ptr<void, free_delete> guard(block);
  T *object = ::new (block) T(std::forward<Arguments>(arguments)...);
  guard.release();
  return unique_ptr<T>(object);
}

/// `zero`: the memory is, and need not be touched for elements that are zero when value-initialised.
template <class T> unique_ptr<T[]> constructed_array(void *block, std::size_t count, bool zero) {
  std::unique_ptr<void, free_delete> guard(block);
  T *objects = static_cast<T *>(block);
  if (!zero || !std::is_arithmetic_v<T>)
    std::uninitialized_value_construct_n(objects, count);
  guard.release();
  return unique_ptr<T[]>(objects, destroy_delete<T[]>(count));
}

template <class T, class Source, class... Arguments> unique_ptr<T> make(Arguments &&...arguments) {
  return constructed<T>(Source::allocate(sizeof(T), alignof(T)), std::forward<Arguments>(arguments)...);
}

template <class T, class Source> unique_ptr<T[]> make_array(std::size_t count) {
  const std::size_t bytes = bytes_of<T>(count);
  const bool zero = std::is_same_v<Source, paged> && bytes >= paged::least;
  return constructed_array<T>(Source::allocate(bytes, alignof(T)), count, zero);
}

} // namespace detail

/// An object in memory of `qmem_allocate`.
template <class T, class... Arguments, std::enable_if_t<!std::is_array_v<T>, int> = 0>
[[nodiscard]] unique_ptr<T> make_unique(Arguments &&...arguments) {
  return detail::make<T, detail::heap>(std::forward<Arguments>(arguments)...);
}
/// An array of value-initialised objects: `make_unique<double[]>(n)`.
template <class T, std::enable_if_t<std::is_array_v<T> && std::extent_v<T> == 0, int> = 0>
[[nodiscard]] unique_ptr<T> make_unique(std::size_t count) {
  return detail::make_array<std::remove_extent_t<T>, detail::heap>(count);
}
/// The same in paged memory; numbers are zero without being touched.
template <class T, std::enable_if_t<std::is_array_v<T> && std::extent_v<T> == 0, int> = 0>
[[nodiscard]] unique_ptr<T> make_paged(std::size_t count) {
  return detail::make_array<std::remove_extent_t<T>, detail::paged>(count);
}
/// An object in a block of a pool, which outlives it; std::bad_alloc if no block of it holds one or the pool is exhausted.
template <class T, class... Arguments> [[nodiscard]] unique_ptr<T> make_pooled(const pool &pool, Arguments &&...arguments) {
  if (!detail::pool_serves(pool.get(), sizeof(T), alignof(T)))
    throw std::bad_alloc();
  return detail::constructed<T>(detail::given(qmem_pool_allocate(pool.get(), sizeof(T))), std::forward<Arguments>(arguments)...);
}

/// A pool of objects that a function makes, lent to one holder at a time. Ends with this object, which must be after all loans. Empty
/// after it was moved from.
template <class T> class object_pool {
public:
  using create_function = std::function<std::unique_ptr<T>()>;
  using reset_function = std::function<void(T &)>;

  /// An object on loan: goes back when this ends. Empty after it was moved from.
  class loan {
  public:
    loan() noexcept = default;
    loan(loan &&other) noexcept : pool_(other.pool_), object_(std::exchange(other.object_, nullptr)) {}
    loan &operator=(loan &&other) noexcept {
      if (this != &other) {
        reset();
        pool_ = other.pool_;
        object_ = std::exchange(other.object_, nullptr);
      }
      return *this;
    }
    ~loan() { reset(); }
    T &operator*() const noexcept { return *object_; }
    T *operator->() const noexcept { return object_; }
    T *get() const noexcept { return object_; }
    explicit operator bool() const noexcept { return object_ != nullptr; }
    /// Gives it back now.
    void reset() noexcept {
      if (T *object = std::exchange(object_, nullptr))
        qmem_object_pool_release(pool_, object);
    }

  private:
    friend class object_pool;
    loan(qmem_object_pool_t *pool, T *object) noexcept : pool_(pool), object_(object) {}
    qmem_object_pool_t *pool_ = nullptr;
    T *object_ = nullptr;
  };

  /// At most `max_size` objects (0: 65536), `initial_size` of them at once. An exception of `create` comes out of the call that
  /// wanted the object; `reset` sees each object that comes back and may not throw.
  explicit object_pool(std::size_t max_size, create_function create = [] { return std::make_unique<T>(); },
                       reset_function reset = nullptr, std::size_t initial_size = 0)
      : functions_(new functions{std::move(create), std::move(reset)}) {
    qmem_object_pool_config_t config{};
    config.create = make_one;
    config.reset = functions_->reset ? reset_one : nullptr;
    config.destroy = end_one;
    config.user = functions_.get();
    config.initial_size = initial_size;
    config.max_size = max_size;
    thrown() = nullptr;
    handle_ = qmem_object_pool_create(&config);
    if (handle_ == nullptr)
      fail(MEMORY_STATUS_INVALID_ARGUMENT);
  }
  object_pool(object_pool &&other) noexcept
      : functions_(std::move(other.functions_)), handle_(std::exchange(other.handle_, nullptr)) {}
  object_pool &operator=(object_pool &&other) noexcept {
    if (this != &other) {
      reset();
      functions_ = std::move(other.functions_);
      handle_ = std::exchange(other.handle_, nullptr);
    }
    return *this;
  }
  ~object_pool() { reset(); }

  /// An object, as soon as there is one.
  [[nodiscard]] loan acquire() {
    loan got = take(UINT32_MAX);
    if (!got)
      throw error(MEMORY_STATUS_INVALID_ARGUMENT);
    return got;
  }
  /// An object if there is one within the time, else an empty loan.
  [[nodiscard]] loan try_acquire(std::chrono::milliseconds timeout = std::chrono::milliseconds(0)) {
    const std::chrono::milliseconds most(UINT32_MAX - 1);
    return take(static_cast<std::uint32_t>((timeout.count() < 0 ? std::chrono::milliseconds(0) : timeout < most ? timeout : most).count()));
  }
  /// For the functions of <qmem.h>; NULL if this is empty.
  qmem_object_pool_t *get() const noexcept { return handle_; }
  explicit operator bool() const noexcept { return handle_ != nullptr; }
  /// Ends the pool.
  void reset() noexcept {
    qmem_object_pool_destroy(std::exchange(handle_, nullptr));
    functions_.reset();
  }

private:
  struct functions {
    create_function create;
    reset_function reset;
  };
  static std::exception_ptr &thrown() noexcept {
    static thread_local std::exception_ptr exception;
    return exception;
  }
  [[noreturn]] static void fail(memory_status_t status) {
    if (std::exception_ptr exception = std::exchange(thrown(), nullptr))
      std::rethrow_exception(exception);
    throw error(status);
  }
  loan take(std::uint32_t timeout_ms) {
    thrown() = nullptr;
    void *object = qmem_object_pool_acquire(handle_, timeout_ms);
    if (object == nullptr && thrown() != nullptr)
      fail(MEMORY_STATUS_OUT_OF_MEMORY);
    return loan(handle_, static_cast<T *>(object));
  }
  static void *make_one(void *user) noexcept {
    try {
      return static_cast<functions *>(user)->create().release();
    } catch (...) {
      thrown() = std::current_exception(); // no exception may pass through qmem
      return nullptr;
    }
  }
  static void reset_one(void *object, void *user) noexcept { static_cast<functions *>(user)->reset(*static_cast<T *>(object)); }
  static void end_one(void *object, void *) noexcept { delete static_cast<T *>(object); }

  std::unique_ptr<functions> functions_; // at its own address, which the pool knows
  qmem_object_pool_t *handle_ = nullptr;
};

} // namespace qmem

#endif

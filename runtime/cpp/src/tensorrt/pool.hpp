// Device memory that is used again, and page-locked memory for copies. Definition: runtime/gpu/array.py.
//
// All work is on one stream, so memory may be handed out again as soon as no tensor refers to it: whatever still uses
// it was enqueued before whatever will write it. A loop whose shapes repeat allocates nothing after its first rounds.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string_view>
#include <utility>
#include <vector>

#include "fastsam2/tensor.hpp"
#include "gpu.hpp"

namespace fastsam2::gpu {

// Memory goes round among tensors of one purpose, so that a loop that repeats itself meets the same addresses soon
// again. `name` is a literal; `graph` a number of a graph or -1.
struct Purpose {
  std::string_view name;
  int graph = -1;
  auto operator<=>(const Purpose&) const = default;
};

// Tensors keep the pool alive, and it the GPU: nothing has to be closed in order.
class Pool : public std::enable_shared_from_this<Pool> {
 public:
  explicit Pool(std::shared_ptr<Gpu> gpu) : gpu_(std::move(gpu)) {}
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  // Waits for the stream, then frees everything.
  ~Pool();

  // Uninitialised. Throws BackendError if memory ran out, even after giving back what was kept for reuse.
  Tensor empty(DType type, Shape shape, Purpose purpose);
  // The memory in use in which an address lies; null for addresses that are none of the pool's.
  [[nodiscard]] std::shared_ptr<void> memory_at(const void* address) const;
  // Gives what is not in use back to the GPU. Waits for the stream.
  void trim();

  [[nodiscard]] std::int64_t allocations() const { return allocations_; }
  [[nodiscard]] std::size_t held_bytes() const { return held_bytes_; }
  [[nodiscard]] std::size_t used_bytes() const { return used_bytes_; }

 private:
  using Key = std::pair<Purpose, std::size_t>;
  struct Block {
    Key key;
    std::weak_ptr<void> user;
  };
  struct Shelf {
    std::vector<void*> free;
    std::size_t made = 0;
  };

  void* allocate(const Key& key);
  void take_back(void* memory) noexcept;
  void trim_locked();

  std::shared_ptr<Gpu> gpu_;
  mutable std::mutex mutex_;
  std::map<std::uintptr_t, Block> blocks_;  // by address
  std::map<Key, Shelf> shelves_;
  std::int64_t allocations_ = 0;
  std::size_t held_bytes_ = 0;
  std::size_t used_bytes_ = 0;
};

// The next of eight sizes between powers of two: shapes that differ a little share memory.
std::size_t rounded(std::size_t bytes);

// Page-locked memory for copies of one round.
class Staging {
 public:
  explicit Staging(std::shared_ptr<Gpu> gpu) : gpu_(std::move(gpu)) {}
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  ~Staging();

  // Memory that nothing else gets until `reset`, aligned to 64 bytes.
  void* take(std::size_t bytes);
  // All of it is free again: the stream is through with all copies. A round that took several pieces leaves one of its
  // size, so that what is held is what one round needs.
  void reset() noexcept;

 private:
  struct Piece {
    std::byte* memory;
    std::size_t bytes;
  };

  void add(std::size_t bytes);

  std::shared_ptr<Gpu> gpu_;
  std::vector<Piece> pieces_;
  std::size_t piece_ = 0;
  std::size_t start_ = 0;
  std::size_t used_ = 0;  // of this round
};

}  // namespace fastsam2::gpu

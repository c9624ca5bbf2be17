#include "pool.hpp"

#include <algorithm>
#include <bit>

namespace fastsam2::gpu {

namespace {

constexpr std::size_t kAlignment = 512;
constexpr std::size_t kStagingAlignment = 64;
constexpr std::size_t kStagingBytes = std::size_t{4} << 20U;  // of one piece, at least

std::uintptr_t number_of(const void* address) {
  return reinterpret_cast<std::uintptr_t>(address);
}

// A context that is lost frees its memory itself.
void wait_without_complaint(Gpu& gpu) noexcept {
  try {
    gpu.synchronize();
  } catch (const Error&) {
  }
}

}  // namespace

std::size_t rounded(std::size_t bytes) {
  const int bits = static_cast<int>(std::bit_width(bytes));
  const std::size_t step = std::max(kAlignment, std::size_t{1} << std::max(0, bits - 4));
  return std::max<std::size_t>(1, (bytes + step - 1) / step) * step;
}

Pool::~Pool() {
  wait_without_complaint(*gpu_);
  for (const auto& [address, block] : blocks_) {
    gpu_->release(reinterpret_cast<void*>(address));  // NOLINT(performance-no-int-to-ptr)
  }
}

Tensor Pool::empty(DType type, Shape shape, Purpose purpose) {
  const Key key{purpose, rounded(static_cast<std::size_t>(shape.elements()) * size_of(type))};
  void* memory = nullptr;
  {
    const std::lock_guard lock(mutex_);
    std::vector<void*>& free = shelves_[key].free;
    if (free.empty()) {
      memory = allocate(key);
    } else {
      memory = free.back();
      free.pop_back();
    }
    used_bytes_ += key.second;
  }
  // Without the lock: what cannot be shared for want of host memory goes back through its deleter.
  std::shared_ptr<void> user(memory, [pool = shared_from_this()](void* p) { pool->take_back(p); });
  const std::lock_guard lock(mutex_);
  blocks_.at(number_of(memory)).user = user;
  return {type, shape, std::move(user), memory};
}

std::shared_ptr<void> Pool::memory_at(const void* address) const {
  const std::lock_guard lock(mutex_);
  auto after = blocks_.upper_bound(number_of(address));
  if (after == blocks_.begin()) {
    return nullptr;
  }
  const auto& [start, block] = *--after;
  return number_of(address) < start + block.key.second ? block.user.lock() : nullptr;
}

void Pool::trim() {
  const std::lock_guard lock(mutex_);
  trim_locked();
}

void Pool::trim_locked() {
  gpu_->synchronize();
  for (auto& [key, shelf] : shelves_) {
    for (void* memory : shelf.free) {
      gpu_->release(memory);
      blocks_.erase(number_of(memory));
      held_bytes_ -= key.second;
    }
    shelf.made -= shelf.free.size();
    shelf.free.clear();
  }
}

void* Pool::allocate(const Key& key) {
  Shelf& shelf = shelves_[key];
  shelf.free.reserve(shelf.made + 1);  // so that memory can come back without allocating
  void* memory = nullptr;
  try {
    memory = gpu_->allocate(key.second);
  } catch (const BackendError&) {
    if (std::ranges::all_of(shelves_, [](const auto& one) { return one.second.free.empty(); })) {
      throw;
    }
    trim_locked();
    memory = gpu_->allocate(key.second);
  }
  blocks_[number_of(memory)] = Block{key, {}};
  ++shelf.made;
  ++allocations_;
  held_bytes_ += key.second;
  return memory;
}

void Pool::take_back(void* memory) noexcept {
  const std::lock_guard lock(mutex_);
  Block& block = blocks_.find(number_of(memory))->second;
  block.user.reset();  // it would keep what this was called from, which keeps the pool
  used_bytes_ -= block.key.second;
  shelves_.find(block.key)->second.free.push_back(memory);
}

Staging::~Staging() {
  wait_without_complaint(*gpu_);
  for (const Piece& piece : pieces_) {
    gpu_->release_pinned(piece.memory);
  }
}

void* Staging::take(std::size_t bytes) {
  while (piece_ < pieces_.size() && start_ + bytes > pieces_[piece_].bytes) {
    ++piece_;
    start_ = 0;
  }
  if (piece_ == pieces_.size()) {
    add(bytes);
  }
  void* memory = pieces_[piece_].memory + start_;
  const std::size_t taken = (bytes + kStagingAlignment - 1) / kStagingAlignment * kStagingAlignment;
  start_ += taken;
  used_ += taken;
  return memory;
}

void Staging::reset() noexcept {
  if (piece_ > 0) {
    for (const Piece& piece : pieces_) {
      gpu_->release_pinned(piece.memory);
    }
    pieces_.clear();
    try {
      add(used_);
    } catch (const std::exception&) {  // the next round asks again, and says so
    }
  }
  piece_ = start_ = used_ = 0;
}

void Staging::add(std::size_t bytes) {
  const std::size_t size = std::max(bytes, kStagingBytes);
  pieces_.reserve(pieces_.size() + 1);
  pieces_.push_back({static_cast<std::byte*>(gpu_->pinned(size)), size});
}

}  // namespace fastsam2::gpu

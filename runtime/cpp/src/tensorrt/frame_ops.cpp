#include "frame_ops.hpp"

#include <algorithm>
#include <limits>
#include <string>

namespace fastsam2::gpu {

namespace {

constexpr unsigned kThreads = FASTSAM2_FRAME_OPS_THREADS;
constexpr unsigned kCellThreads = 64;       // a cell takes long: smaller blocks reach more multiprocessors
constexpr std::int64_t kMaxBlocks = 4096;   // threads beyond these take several elements each
constexpr std::int64_t kMaxRowBlocks = 64;  // of one frame's rows
constexpr std::int64_t kMaxLines = 65535;   // of a grid's second axis
constexpr std::int64_t kMaxCount = std::numeric_limits<std::int32_t>::max();
constexpr std::size_t kChunk = 16;
constexpr std::string_view kLayout = "See kernels/cuda/frame_ops.h for the layout of every tensor";

// A size as kernels take it.
int sized(std::string_view what, std::int64_t size, std::int64_t most = kMaxCount) {
  if (size < 1 || size > most) {
    const std::string range = std::string(what) + " in 1.." + std::to_string(most);
    throw InternalError(expected(range, std::to_string(size), kLayout));
  }
  return static_cast<int>(size);
}

// An address as kernels take it.
template <typename T>
T* at(std::conditional_t<std::is_const_v<T>, const void*, void*> address, std::size_t alignment) {
  if (address == nullptr || reinterpret_cast<std::uintptr_t>(address) % alignment != 0) {
    const std::string what = "a device address that is a multiple of " + std::to_string(alignment);
    throw InternalError(expected(what, std::to_string(reinterpret_cast<std::uintptr_t>(address)), kLayout));
  }
  return static_cast<T*>(address);
}

template <typename T>
T* at(std::conditional_t<std::is_const_v<T>, const void*, void*> address) {
  return at<T>(address, sizeof(T));
}

unsigned blocks(std::int64_t n, unsigned threads = kThreads) {
  return static_cast<unsigned>(std::min((n + threads - 1) / threads, kMaxBlocks));
}

}  // namespace

void FrameOps::resize(const Resize& r) {
  const int height = sized("height", r.height, kMaxLines);
  const int width = sized("width", r.width, kMaxLines);
  const int size = sized("size", r.size, kMaxLines);
  const auto* frame = at<const unsigned char>(r.frame);
  auto* scratch = at<unsigned char>(r.scratch);
  auto* pixels = at<unsigned char>(r.pixels);
  const int* across_bounds = at<const int>(r.column_bounds);
  const int* across = at<const int>(r.column_weights);
  const int* down_bounds = at<const int>(r.row_bounds);
  const int* down = at<const int>(r.row_weights);
  const int across_taps = resize_taps(r.width, r.size);
  const int down_taps = resize_taps(r.height, r.size);
  const auto wide = [](std::int64_t columns) { return static_cast<unsigned>((columns + kThreads - 1) / kThreads); };
  const Grid onto_size{wide(r.size), static_cast<unsigned>(size), kThreads};
  if (r.rows_first) {
    launch(Kernel::ResizeRows, {wide(r.width), static_cast<unsigned>(size), kThreads},
           fastsam2_resize_args{frame, scratch, down_bounds, down, size, width, width, down_taps, 0});
    launch(Kernel::ResizeColumns, onto_size,
           fastsam2_resize_args{scratch, pixels, across_bounds, across, size, size, width, across_taps, 1});
  } else {
    launch(Kernel::ResizeColumns, {wide(r.size), static_cast<unsigned>(height), kThreads},
           fastsam2_resize_args{frame, scratch, across_bounds, across, height, size, width, across_taps, 0});
    launch(Kernel::ResizeRows, onto_size,
           fastsam2_resize_args{scratch, pixels, down_bounds, down, size, size, size, down_taps, 1});
  }
}

void FrameOps::round_bfloat16(const void* values, void* bits, std::int64_t n) {
  if (n > 0) {
    launch(Kernel::RoundBfloat16, {blocks(n)},
           fastsam2_round_args{at<const float>(values), at<unsigned short>(bits), n});
  }
}

void FrameOps::pool_2x2(const void* rows, void* pooled, std::int64_t grid, std::int64_t dim) {
  sized("values", grid * grid * dim);
  if (grid % 2 != 0) {
    throw InternalError(expected("an even grid", std::to_string(grid), kLayout));
  }
  launch(Kernel::Pool2x2, {blocks(grid * grid / 4 * dim)},
         fastsam2_pool_args{at<const unsigned short>(rows), at<unsigned short>(pooled), sized("grid", grid),
                            sized("dim", dim)});
}

void FrameOps::mask_scores(const void* logits, const void* order, void* scores, std::int64_t grid) {
  sized("logits of an object", 16 * grid * grid);
  launch(Kernel::MaskScores, {blocks(grid * grid, kCellThreads), 1, kCellThreads},
         fastsam2_cells_args{at<const float>(logits, kChunk), at<const float>(order), at<float>(scores),
                             sized("grid", grid)});
}

void FrameOps::uncertainty(const void* logits, void* values, std::int64_t batch, std::int64_t grid) {
  sized("logits of an object", 16 * grid * grid);
  const auto lines = static_cast<unsigned>(sized("batch", batch, kMaxLines));
  launch(Kernel::Uncertainty, {blocks(grid * grid, kCellThreads), lines, kCellThreads},
         fastsam2_cells_args{at<const float>(logits, kChunk), nullptr, at<float>(values), sized("grid", grid)});
}

void FrameOps::masks(const void* logits, const void* rows, const void* columns, void* masks, std::int64_t batch,
                     std::int64_t side, std::int64_t height, std::int64_t width) {
  const auto lines = static_cast<unsigned>(sized("batch", batch, kMaxLines));
  sized("logits of an object", side * side);
  const bool same = height == side && width == side;
  const fastsam2_masks_args args{at<const float>(logits),
                                 same ? nullptr : at<const fastsam2_lerp>(rows, kChunk),
                                 same ? nullptr : at<const fastsam2_lerp>(columns, kChunk),
                                 at<unsigned char>(masks),
                                 sized("side", side),
                                 sized("height", height),
                                 sized("width", width)};
  launch(Kernel::Masks, {blocks(sized("pixels", height * width)), lines}, args);
}

void FrameOps::clamp(const void* values, void* clamped, std::int64_t n, float limit) {
  if (n > 0) {
    launch(Kernel::Clamp, {blocks(n)}, fastsam2_clamp_args{at<const float>(values), at<float>(clamped), n, limit});
  }
}

void FrameOps::fill_words(void* target, std::int64_t n, unsigned word) {
  if (n > 0) {
    launch(Kernel::FillWords, {blocks(n)}, fastsam2_fill_args{at<unsigned>(target), n, word});
  }
}

void FrameOps::fill_bytes(void* target, std::int64_t n, unsigned word) {
  if (n > 0) {
    launch(Kernel::FillBytes, {blocks(n)}, fastsam2_fill_args{at<unsigned char>(target), n, word});
  }
}

void FrameOps::read_memory(const void* table, const MemoryTable& layout, fastsam2_read_memory_args args) {
  const std::size_t wide = args.dim % 8 == 0 ? kChunk : sizeof(float);
  args.entries = at<const fastsam2_memory_entry>(table, kChunk);
  args.pointer_entries = reinterpret_cast<const fastsam2_pointer_entry*>(args.entries + layout.entries);
  args.memory = at<float>(args.memory, wide);
  args.entry_count = layout.entries;
  args.rows = sized("rows", layout.rows);
  args.pointer_count = static_cast<int>(layout.pointers);
  sized("values of an object", std::max(layout.rows * args.dim, layout.pointers * args.hidden));
  args.keys = sized("keys", layout.rows + args.hidden / args.dim * layout.pointers);
  const std::int64_t lines = sized("frames and objects", layout.entries + layout.batch, kMaxLines);
  const std::int64_t values = 8 * static_cast<std::int64_t>(kThreads);  // of a block at a time
  const std::int64_t needed = (layout.rows * args.dim + values - 1) / values;
  launch(Kernel::ReadMemory, {static_cast<unsigned>(std::min(needed, kMaxRowBlocks)), static_cast<unsigned>(lines)},
         args);
}

void FrameOps::top_k_gather(const void* scores, const void* rows, void* kept, void* index, std::int64_t n,
                            std::int64_t k, std::int64_t row_bytes) {
  fastsam2_top_k_gather_args args{};
  args.scores = scores;
  args.rows = rows;
  args.kept = kept;
  args.index = static_cast<int*>(index);
  args.scores_batch_stride = n;
  args.rows_pitch = args.kept_pitch = row_bytes;
  args.rows_batch_stride = n * row_bytes;
  args.kept_batch_stride = k * row_bytes;
  args.index_batch_stride = k;
  args.batch = 1;
  args.n = sized("n", n, FASTSAM2_TOP_K_GATHER_MAX_ROWS);
  args.k = static_cast<int>(k);
  args.row_bytes = sized("row_bytes", row_bytes, FASTSAM2_TOP_K_GATHER_MAX_ROW_BYTES);
  gpu_.top_k_gather(args);
}

}  // namespace fastsam2::gpu

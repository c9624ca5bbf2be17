/*
 * The C interface of fastsam2: for C, Rust, C# and everything else that calls C.
 *
 * Handles are numbers, never addresses. 0 is no handle. A handle that was closed, or never opened, is refused with
 * FASTSAM2_ERROR_HANDLE; numbers are not used again.
 *
 * Memory. Whatever a pointer argument points to is read during the call only. What a result view points to belongs to the
 * result and stays until fastsam2_result_close; results do not depend on the tracker or bundle they came from. A bundle may
 * be closed while its trackers go on. All text is UTF-8 and ends with a zero.
 *
 * Threads. Every function may be called from every thread; calls on the same tracker run one after another. A callback is
 * called on the thread that called the tracker or fastsam2_bundle_encode_text, from several at once if several trackers
 * of the bundle, or one and fastsam2_bundle_encode_text, are used so; it must not call back into the tracker it runs for,
 * and must not close handles. Closing a tracker or a bundle waits for calls on it that run in other threads.
 *
 * Errors. Every function answers a status. After anything but FASTSAM2_OK nothing was changed, no output was written, and
 * fastsam2_last_error() says what was expected, what came and what to do next. No exception ever leaves the library.
 *
 * Versions. Every struct begins with its size as the caller was compiled with; fields that come later in newer releases read
 * as zero, and zero always means the default. FASTSAM2_ABI_VERSION changes only when that rule cannot hold.
 */
#ifndef FASTSAM2_H_
#define FASTSAM2_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FASTSAM2_ABI_VERSION 1

typedef enum fastsam2_status {
  FASTSAM2_OK = 0,
  FASTSAM2_ERROR_PROMPT = 1,   /* a prompt, frame, object id or option value is not legal */
  FASTSAM2_ERROR_BUNDLE = 2,   /* the bundle is missing, altered, or of another version */
  FASTSAM2_ERROR_BACKEND = 3,  /* the backend or a graph cannot run here, or the callback failed */
  FASTSAM2_ERROR_HANDLE = 4,   /* no open handle */
  FASTSAM2_ERROR_ABI = 5,      /* the caller was compiled for another version */
  FASTSAM2_ERROR_MEMORY = 6,   /* out of memory */
  FASTSAM2_ERROR_INTERNAL = 7  /* a broken invariant inside fastsam2: please report it */
} fastsam2_status;

typedef struct fastsam2_bundle { uint64_t id; } fastsam2_bundle;
typedef struct fastsam2_tracker { uint64_t id; } fastsam2_tracker;
typedef struct fastsam2_result { uint64_t id; } fastsam2_result;

typedef enum fastsam2_dtype {
  FASTSAM2_FLOAT32 = 0,
  FASTSAM2_INT32 = 1,
  FASTSAM2_UINT16 = 2,
  FASTSAM2_UINT8 = 3,
  FASTSAM2_BOOL = 4
} fastsam2_dtype;

/* One input or output of a graph: C-contiguous host memory. Names, types and axes are those of fastsam2/contracts.py. */
typedef struct fastsam2_tensor {
  const char* name;
  uint32_t dtype; /* fastsam2_dtype */
  uint32_t rank;
  int64_t shape[4];
  void* data;
  uint64_t bytes;
} fastsam2_tensor;

/*
 * Runs one graph of the bundle, for example with ONNX Runtime: reads the inputs and fills the memory of the outputs.
 * Answers 0, or anything else after writing a reason into message (message_bytes large, zero at the end).
 */
typedef int32_t (*fastsam2_run)(void* user, const char* role, const fastsam2_tensor* inputs, uint32_t input_count,
                                const fastsam2_tensor* outputs, uint32_t output_count, char* message,
                                uint32_t message_bytes);

/* What runs the graphs. One that the library was built without is refused with FASTSAM2_ERROR_BACKEND. */
typedef enum fastsam2_backend {
  FASTSAM2_BACKEND_CALLBACK = 0,    /* the function run */
  FASTSAM2_BACKEND_ONNXRUNTIME = 1, /* ONNX Runtime on the CPU */
  FASTSAM2_BACKEND_TENSORRT = 2,
  FASTSAM2_BACKEND_TENSORRT_RTX = 3
} fastsam2_backend;

typedef struct fastsam2_bundle_options {
  uint32_t struct_size;
  uint32_t abi_version; /* FASTSAM2_ABI_VERSION */
  fastsam2_run run;     /* runs the graphs of FASTSAM2_BACKEND_CALLBACK, null for every other backend; stays callable until
                           the bundle and all its trackers are closed */
  void* user;           /* for run */
  uint32_t skip_hashes; /* 1: compare presence and sizes of files only; engines are hashed all the same */
  uint32_t reserved;    /* never read */
  uint32_t backend;     /* fastsam2_backend */
  uint32_t threads;     /* of the CPU, inside one operator; 0: every core this process may use */
  uint32_t gpu;         /* index of the GPU, for backends on one */
  uint32_t cuda_graphs; /* 1: TensorRT's engines are replayed as CUDA graphs once their addresses come back */
} fastsam2_bundle_options;

typedef struct fastsam2_bundle_info {
  uint32_t struct_size;
  uint32_t image_size; /* side of the model's input, pixels */
  uint32_t text_dim;   /* numbers of a text embedding */
  uint32_t has_router;
  uint32_t has_text_encoder;
} fastsam2_bundle_info;

typedef enum fastsam2_policy {
  FASTSAM2_DENSE = 0,
  FASTSAM2_RANDOM = 1,
  FASTSAM2_UNIFORM = 2,
  FASTSAM2_MASK = 3,
  FASTSAM2_POOL2X2 = 4,
  FASTSAM2_ROUTER = 5
} fastsam2_policy;

typedef struct fastsam2_tracker_options {
  uint32_t struct_size;
  uint32_t policy;                 /* fastsam2_policy */
  double keep;                     /* fraction of a frame's memory rows to keep, (0, 1]; 0: all */
  int64_t tokens;                  /* the same as a row count; 0: keep decides */
  int64_t seed;                    /* of FASTSAM2_RANDOM */
  uint32_t guard;                  /* 1: keep more rows while tracking looks unsure */
  uint32_t prune_prompt_frames;    /* 1: prompt frames are pruned too */
  uint32_t prune_newest_frame;     /* 1: the newest frame is pruned too */
  uint32_t corrections_as_prompts; /* 1: a corrected frame counts as a prompt frame */
  uint32_t max_prompt_frames;      /* 0: 4 */
  uint32_t fill_hole_area;         /* low-resolution pixels; 0: holes stay */
  uint32_t memory_budget_mb;       /* estimated activations of a batch of objects; 0: 4096 */
} fastsam2_tracker_options;

typedef enum fastsam2_pixel_format { FASTSAM2_RGB8 = 0, FASTSAM2_BGR8 = 1 } fastsam2_pixel_format;

typedef struct fastsam2_image {
  uint32_t struct_size;
  uint32_t format; /* fastsam2_pixel_format: three bytes a pixel */
  uint32_t height;
  uint32_t width;
  uint64_t row_bytes;   /* from one row to the next; 0: 3 * width */
  const uint8_t* pixels;
  uint64_t pixel_bytes; /* readable from pixels on */
} fastsam2_image;

/* A box, points, or both; or a mask alone. In pixels of the video. */
typedef struct fastsam2_prompt {
  uint32_t struct_size;
  uint32_t point_count;
  const float* box;      /* x0, y0, x1, y1; null for none */
  const float* points;   /* x, y of each */
  const int32_t* labels; /* 1 on the object, 0 off it, of each point; null for all 1 */
  const uint8_t* mask;   /* a byte a pixel, not 0 on the object, height * width of the frame, rows without gaps; null for none */
  uint32_t mask_height;
  uint32_t mask_width;
} fastsam2_prompt;

typedef struct fastsam2_result_view {
  uint32_t struct_size;
  uint32_t object_count;
  int64_t frame; /* index since the tracker was opened or reset */
  uint32_t height;
  uint32_t width;
  uint32_t low_res_side;
  uint32_t reserved;
  const int64_t* ids;          /* [object_count], in the order they were added */
  const uint8_t* masks;        /* [object_count, height, width], 0 or 1 */
  const float* scores;         /* [object_count]; visible when > 0 */
  const float* ious;           /* [object_count], predicted */
  const float* low_res_logits; /* [object_count, low_res_side, low_res_side] */
  const int64_t* rows_held;    /* [object_count], memory rows */
} fastsam2_result_view;

#if defined(_WIN32)
#define FASTSAM2_API
#else
#define FASTSAM2_API __attribute__((visibility("default")))
#endif

/* FASTSAM2_ABI_VERSION of the library. */
FASTSAM2_API uint32_t fastsam2_abi_version(void);
/* What went wrong in this thread's newest call that failed; stays until its next one. */
FASTSAM2_API const char* fastsam2_last_error(void);

/* Files are read when a graph runs first, so the folder has to stay until the bundle and all its trackers are closed. */
FASTSAM2_API fastsam2_status fastsam2_bundle_open(const char* folder, const fastsam2_bundle_options* options,
                                                  fastsam2_bundle* bundle);
FASTSAM2_API fastsam2_status fastsam2_bundle_describe(fastsam2_bundle bundle, fastsam2_bundle_info* info);
/* Embeddings of texts, float32 [text_count, text_dim], from token ids int32 [text_count, 77]; value_count is the room there. */
FASTSAM2_API fastsam2_status fastsam2_bundle_encode_text(fastsam2_bundle bundle, const int32_t* ids, uint32_t text_count,
                                                         float* values, uint64_t value_count);
FASTSAM2_API fastsam2_status fastsam2_bundle_close(fastsam2_bundle bundle);

/* options may be null. */
FASTSAM2_API fastsam2_status fastsam2_tracker_open(fastsam2_bundle bundle, const fastsam2_tracker_options* options,
                                                   fastsam2_tracker* tracker);
/* Takes the next frame and tracks every object on it. */
FASTSAM2_API fastsam2_status fastsam2_tracker_step(fastsam2_tracker tracker, const fastsam2_image* frame,
                                                   fastsam2_result* result);
/* Starts tracking an object, id >= 1, from the newest frame on. */
FASTSAM2_API fastsam2_status fastsam2_tracker_add(fastsam2_tracker tracker, int64_t id, const fastsam2_prompt* prompt,
                                                  fastsam2_result* result);
/* Corrects an object on the newest frame; append keeps the points given on it before. */
FASTSAM2_API fastsam2_status fastsam2_tracker_correct(fastsam2_tracker tracker, int64_t id, const fastsam2_prompt* prompt,
                                                      int32_t append, fastsam2_result* result);
/* Says what an object is, for the router, with an embedding of value_count numbers; 0 takes that back. */
FASTSAM2_API fastsam2_status fastsam2_tracker_describe(fastsam2_tracker tracker, int64_t id, const float* values,
                                                       uint64_t value_count);
FASTSAM2_API fastsam2_status fastsam2_tracker_remove(fastsam2_tracker tracker, int64_t id);
/* Forgets every object and frame; the next frame may have another size. */
FASTSAM2_API fastsam2_status fastsam2_tracker_reset(fastsam2_tracker tracker);
FASTSAM2_API fastsam2_status fastsam2_tracker_close(fastsam2_tracker tracker);

/* Fills as much of the view as struct_size says there is. */
FASTSAM2_API fastsam2_status fastsam2_result_read(fastsam2_result result, fastsam2_result_view* view);
FASTSAM2_API fastsam2_status fastsam2_result_close(fastsam2_result result);

#ifdef __cplusplus
}
#endif

#endif /* FASTSAM2_H_ */

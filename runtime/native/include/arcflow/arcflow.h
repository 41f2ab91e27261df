/* ArcFlow's C interface: from a prompt to pixels in two network evaluations, inside any process.
 *
 * One symbol is exported, arcflow_get_api(version). It returns a table of functions that only ever grows at its end, so
 * a program built against an older header runs with a newer library. Structs that the caller fills carry their own size
 * first, for the same reason: set it with ARCFLOW_INIT.
 *
 *     const ArcflowApi* api = arcflow_get_api(ARCFLOW_API_VERSION);
 *     ArcflowContext* context = NULL;
 *     ArcflowStatus* status = api->context_create(NULL, &context);
 *     if (status != NULL) { puts(api->status_message(status)); api->status_destroy(status); }
 *
 * Every function that can fail returns NULL for success and else a status that the caller destroys. No C++ exception
 * leaves the library, it has no global state of its own, writes to no stream and sends nothing anywhere.
 *
 * Threads. A context and a model may be used by any number of threads at once. A session is used by one thread at a
 * time; any number of sessions share one model. A cancel token may be cancelled from any thread, also from a signal's
 * handling thread. Objects may be destroyed in any order: what is still needed lives on inside. Callbacks run on the
 * thread that called generate; they must not use that session.
 *
 * Text is UTF-8 and ends with NUL. Strings that the library returns live as long as the object they came from.
 */
#ifndef ARCFLOW_ARCFLOW_H_
#define ARCFLOW_ARCFLOW_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ARCFLOW_API_VERSION 1u

#if defined(_WIN32)
#define ARCFLOW_CALL __cdecl
#define ARCFLOW_EXPORT
#else
#define ARCFLOW_CALL
#define ARCFLOW_EXPORT __attribute__((visibility("default")))
#endif

/* A struct of the given type with its size set and everything else zero, which is "the default" everywhere. */
#ifdef __cplusplus
#define ARCFLOW_INIT(type) (::arcflow_detail_init<type>())
#else
#define ARCFLOW_INIT(type) ((type){.struct_size = sizeof(type)})
#endif

typedef struct ArcflowStatus ArcflowStatus;   /* why a call failed */
typedef struct ArcflowContext ArcflowContext; /* logger and where engine hosts are found */
typedef struct ArcflowModel ArcflowModel;     /* a verified bundle, loaded; immutable */
typedef struct ArcflowSession ArcflowSession; /* the buffers and the stream of one thread */
typedef struct ArcflowCancel ArcflowCancel;   /* a token that ends requests */
typedef struct ArcflowBytes ArcflowBytes;     /* bytes that the library made: a PNG file, a text */

typedef enum ArcflowCode {
  ARCFLOW_OK = 0,
  ARCFLOW_INVALID_ARGUMENT = 1,    /* the request breaks a rule; the message names it and what is allowed */
  ARCFLOW_BUNDLE_REJECTED = 2,     /* the bundle is missing, altered, stale, or not of this machine */
  ARCFLOW_BACKEND_UNAVAILABLE = 3, /* no engine host, library or device that could run it; or it failed */
  ARCFLOW_OUT_OF_MEMORY = 4,       /* of the host or of the device */
  ARCFLOW_CANCELLED = 5,           /* by a cancel token or by a callback */
  ARCFLOW_DEADLINE_EXCEEDED = 6,
  ARCFLOW_INTERNAL = 7 /* a defect of ArcFlow: please report the message */
} ArcflowCode;

typedef enum ArcflowLogLevel {
  ARCFLOW_LOG_DEBUG = 0,
  ARCFLOW_LOG_INFO = 1,
  ARCFLOW_LOG_WARNING = 2,
  ARCFLOW_LOG_ERROR = 3
} ArcflowLogLevel;

/* Called from any thread, never twice at once for one context. */
typedef void(ARCFLOW_CALL* ArcflowLogger)(void* user, int32_t level, const char* message);

typedef struct ArcflowContextOptions {
  size_t struct_size;
  ArcflowLogger logger; /* NULL: nothing is logged */
  void* logger_user;
  int32_t least_level;        /* messages below it are not made; ARCFLOW_LOG_... */
  const char* host_directory; /* where libarcflow_host_*.so lie; NULL: "arcflow" beside this library */
} ArcflowContextOptions;

typedef struct ArcflowModelOptions {
  size_t struct_size;
  const char* bundle;    /* a bundle's folder, or a model's name, which is looked up in $ARCFLOW_ENGINES and then in
                            the built-in folder; required. A name holds no path separator. */
  const char* precision; /* which of a model's bundles, "fp16"; NULL: the best there is */
  const char* target;    /* "cpu", "sm120", ...; NULL: the best there is */
  const char* host;      /* "ort" or "tensorrt"; NULL: what the manifest calls for */
  /* Path of libonnxruntime or libnvinfer; NULL: what $ARCFLOW_ONNXRUNTIME or $ARCFLOW_TENSORRT names, then the loader's
     search. */
  const char* library;
  uint32_t threads; /* compute threads of a network on the CPU; 0: the cores, at most 8 */
  uint32_t device;  /* ordinal of the GPU */
  /* Not 0: the bundle's files may be symbolic or hard links, as in the caches of Hugging Face's hub, Nix or Bazel; what
     they lead to must be plain files with the manifest's digests. 8 bytes, so that no padding ends the struct. */
  uint64_t allow_links;
} ArcflowModelOptions;

typedef struct ArcflowRange {
  uint32_t min, opt, max;
} ArcflowRange;

/* What a model is and what it takes. */
typedef struct ArcflowModelInfo {
  size_t struct_size;
  const char* model;        /* "tiny", "flux", "qwen" */
  const char* architecture; /* "flux" or "qwen" */
  const char* precision;
  const char* target;
  const char* digest;  /* of the bundle's manifest: 64 hexadecimal digits */
  const char* bundle;  /* the folder it was loaded from */
  const char* backend; /* what runs it: "ONNX Runtime 1.32.0, CPU, 2 threads" */
  ArcflowRange batch, width, height;
  uint32_t multiple; /* width and height are multiples of it */
  uint32_t nfe, max_nfe;
  uint32_t latent_channels, latent_factor; /* the latents are [channels, height/factor, width/factor] */
} ArcflowModelInfo;

typedef struct ArcflowMemory {
  size_t struct_size;
  uint64_t host_bytes;   /* buffers and weights held in main memory, as far as they are known */
  uint64_t device_bytes; /* the same in the GPU's memory; 0 on a CPU */
} ArcflowMemory;

typedef struct ArcflowSessionOptions {
  size_t struct_size;
  void* stream; /* a cudaStream_t of the caller's to run on; NULL: the session makes its own */
} ArcflowSessionOptions;

/* One network evaluation is done. Return 0 to go on; anything else ends the request with ARCFLOW_CANCELLED. */
typedef struct ArcflowStep {
  size_t struct_size;
  uint32_t index, total; /* the evaluation, from 0, among those of the whole request (evaluations times batches) */
  uint32_t first_image;  /* place of the batch's first image in the request */
  uint32_t image_count;  /* images of this batch */
  double sigma_from, sigma_to;
} ArcflowStep;
typedef int32_t(ARCFLOW_CALL* ArcflowOnStep)(void* user, const ArcflowStep* step);

/* A frame between noise and image, by the closed form. The pixels live until the callback returns. */
typedef struct ArcflowPreview {
  size_t struct_size;
  uint32_t image; /* place of the image in the request */
  uint32_t frame; /* from 0, the noisiest first */
  double sigma;
  const uint8_t* rgb8; /* [height, width, 3] */
  uint32_t width, height;
} ArcflowPreview;
typedef int32_t(ARCFLOW_CALL* ArcflowOnPreview)(void* user, const ArcflowPreview* preview);

/* A sentence for the user: a prompt was cut. */
typedef void(ARCFLOW_CALL* ArcflowOnWarning)(void* user, const char* message);

/* Token ids in place of a tokenizer's work, for every prompt: those of one text encoder. */
typedef struct ArcflowTokens {
  size_t struct_size;
  const char* encoder; /* "clip", "t5" (FLUX), "text" (Qwen-Image) */
  const int64_t* ids;  /* [prompt_count, length], start, end and template tokens included */
  const int64_t* mask; /* the same shape, 1 for a token and 0 for padding; NULL: every id is one */
  size_t length;
} ArcflowTokens;

typedef struct ArcflowRequest {
  size_t struct_size;
  const char* const* prompts; /* UTF-8; may be NULL where tokens are given for every encoder */
  size_t prompt_count;
  const ArcflowTokens* tokens; /* NULL: the bundle's tokenizers make them from the prompts */
  size_t token_count;          /* entries of tokens: one for each text encoder, or 0 */
  uint64_t seed;               /* image j starts from the noise of (seed + j) mod 2^64 */
  const uint64_t* seeds;       /* or one seed for each image; NULL: from seed */
  size_t seed_count;           /* images of the request where seeds is given */
  uint32_t num_images;         /* images a prompt, prompt by prompt; 0: 1 */
  uint32_t nfe;                /* network evaluations; 0: the bundle's */
  uint32_t width, height;      /* pixels; 0: the bundle's usual ones */
  uint32_t previews;           /* frames to hand to on_preview, 0 to 64 */
  double timeout;              /* seconds from the call until ARCFLOW_DEADLINE_EXCEEDED; 0: none */
  ArcflowCancel* cancel;       /* may be NULL */
  ArcflowOnStep on_step;
  ArcflowOnPreview on_preview;
  ArcflowOnWarning on_warning;
  void* user; /* given to the three */
} ArcflowRequest;

/* What a request will make: its sizes, so that the caller can provide the buffers. */
typedef struct ArcflowShape {
  size_t struct_size;
  uint32_t image_count, width, height, nfe;
  size_t rgb8_bytes;    /* image_count * height * width * 3 */
  size_t image_floats;  /* image_count * 3 * height * width */
  size_t latent_floats; /* image_count * latent_channels * (height/factor) * (width/factor) */
} ArcflowShape;

/* Where the results go. Each buffer is the caller's and may be NULL; its capacity is checked before anything runs. */
typedef struct ArcflowOutput {
  size_t struct_size;
  uint8_t* rgb8; /* [image_count, height, width, 3] */
  size_t rgb8_bytes;
  float* images; /* [image_count, 3, height, width], about -1 to 1, as the VAE gives them */
  size_t image_floats;
  float* latents; /* [image_count, channels, height/factor, width/factor], before the VAE's scale and shift */
  size_t latent_floats;
  /* Filled in: seconds by stage. */
  double tokenize_seconds, text_seconds, noise_seconds, backbone_seconds, solver_seconds, vae_seconds, total_seconds;
} ArcflowOutput;

/* The functions. Entries are appended, never moved or removed, within one version. */
typedef struct ArcflowApi {
  size_t struct_size; /* bytes of this table: an entry exists if it ends within them */
  uint32_t version;

  /* "0.1.0" */
  const char*(ARCFLOW_CALL* library_version)(void);

  int32_t(ARCFLOW_CALL* status_code)(const ArcflowStatus* status); /* ARCFLOW_OK for NULL */
  const char*(ARCFLOW_CALL* status_message)(const ArcflowStatus* status);
  void(ARCFLOW_CALL* status_destroy)(ArcflowStatus* status);

  ArcflowStatus*(ARCFLOW_CALL* context_create)(const ArcflowContextOptions* options, ArcflowContext** out);
  void(ARCFLOW_CALL* context_destroy)(ArcflowContext* context);

  /* Verifies the bundle (every byte that is loaded is hashed first) and loads its networks. */
  ArcflowStatus*(ARCFLOW_CALL* model_open)(ArcflowContext* context, const ArcflowModelOptions* options,
                                           ArcflowModel** out);
  void(ARCFLOW_CALL* model_destroy)(ArcflowModel* model);
  /* Fills in *info as far as its struct_size reaches; the strings live as long as the model. */
  ArcflowStatus*(ARCFLOW_CALL* model_info)(const ArcflowModel* model, ArcflowModelInfo* info);
  ArcflowStatus*(ARCFLOW_CALL* model_memory)(const ArcflowModel* model, ArcflowMemory* memory);
  /* Checks a request and says what it will make; nothing runs. */
  ArcflowStatus*(ARCFLOW_CALL* model_shape)(const ArcflowModel* model, const ArcflowRequest* request,
                                            ArcflowShape* shape);

  ArcflowStatus*(ARCFLOW_CALL* session_create)(ArcflowModel* model, const ArcflowSessionOptions* options,
                                               ArcflowSession** out);
  void(ARCFLOW_CALL* session_destroy)(ArcflowSession* session);
  ArcflowStatus*(ARCFLOW_CALL* session_memory)(const ArcflowSession* session, ArcflowMemory* memory);
  /* Runs every network once at the request's shape, so that the first real request is as fast as the next. */
  ArcflowStatus*(ARCFLOW_CALL* session_warm_up)(ArcflowSession* session, const ArcflowRequest* request);
  ArcflowStatus*(ARCFLOW_CALL* session_generate)(ArcflowSession* session, const ArcflowRequest* request,
                                                 ArcflowOutput* output);

  ArcflowStatus*(ARCFLOW_CALL* cancel_create)(ArcflowCancel** out);
  /* Ends every request that runs with the token, within milliseconds, and every later one. */
  void(ARCFLOW_CALL* cancel_request)(ArcflowCancel* cancel);
  void(ARCFLOW_CALL* cancel_destroy)(ArcflowCancel* cancel);

  /* The settings of image `image` of a request as one JSON object: all that determines it. */
  ArcflowStatus*(ARCFLOW_CALL* describe_image)(const ArcflowModel* model, const ArcflowRequest* request, uint32_t image,
                                               ArcflowBytes** out);
  /* A PNG file of [height, width, 3]. settings: a JSON object to keep in its text chunks, or NULL. */
  ArcflowStatus*(ARCFLOW_CALL* encode_png)(const uint8_t* rgb8, uint32_t width, uint32_t height, const char* settings,
                                           ArcflowBytes** out);
  const uint8_t*(ARCFLOW_CALL* bytes_data)(const ArcflowBytes* bytes); /* followed by a NUL that is not counted */
  size_t(ARCFLOW_CALL* bytes_size)(const ArcflowBytes* bytes);
  void(ARCFLOW_CALL* bytes_destroy)(ArcflowBytes* bytes);

  /* Checks every byte of the bundle in a folder against its manifest; loads and runs nothing. */
  ArcflowStatus*(ARCFLOW_CALL* verify_bundle)(const char* folder);
  /* `count` values of an image's starting noise from element `first` on (see DESIGN.md, "Noise"). */
  ArcflowStatus*(ARCFLOW_CALL* noise)(uint64_t seed, uint64_t first, size_t count, float* out);
} ArcflowApi;

/* The table of that version, or NULL where this library does not have it. */
ARCFLOW_EXPORT const ArcflowApi* ARCFLOW_CALL arcflow_get_api(uint32_t version);

#ifdef __cplusplus
} /* extern "C" */

template <class T>
inline T arcflow_detail_init() {
  T value{};
  value.struct_size = sizeof(T);
  return value;
}
#endif

#endif /* ARCFLOW_ARCFLOW_H_ */

/* A C program against the installed header and library: opens the model "tiny" by name and prints one image's digest.
 * Usage: consumer_c ONNXRUNTIME
 */
#include <arcflow/arcflow.h>
#include <stdio.h>
#include <stdlib.h>

static const ArcflowApi* api;

static void require(ArcflowStatus* status) {
  if (status == NULL) return;
  fprintf(stderr, "error %d: %s\n", (int)api->status_code(status), api->status_message(status));
  exit(2);
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  api = arcflow_get_api(ARCFLOW_API_VERSION);
  if (api == NULL) return 2;

  ArcflowContext* context = NULL;
  require(api->context_create(NULL, &context));
  ArcflowModelOptions options = ARCFLOW_INIT(ArcflowModelOptions);
  options.bundle = "tiny";
  options.library = argv[1];
  options.threads = 1;
  ArcflowModel* model = NULL;
  require(api->model_open(context, &options, &model));
  ArcflowSession* session = NULL;
  require(api->session_create(model, NULL, &session));

  const char* prompt = "a smiling face with sunglasses";
  ArcflowRequest request = ARCFLOW_INIT(ArcflowRequest);
  request.prompts = &prompt;
  request.prompt_count = 1;
  request.seed = 5;
  ArcflowShape shape = ARCFLOW_INIT(ArcflowShape);
  require(api->model_shape(model, &request, &shape));
  uint8_t* pixels = malloc(shape.rgb8_bytes);
  if (pixels == NULL) return 2;
  ArcflowOutput output = ARCFLOW_INIT(ArcflowOutput);
  output.rgb8 = pixels;
  output.rgb8_bytes = shape.rgb8_bytes;
  require(api->session_generate(session, &request, &output));

  uint64_t digest = 14695981039346656037u; /* FNV-1a */
  for (size_t i = 0; i < shape.rgb8_bytes; ++i) digest = (digest ^ pixels[i]) * 1099511628211u;
  printf("%ux%u %016llx\n", shape.width, shape.height, (unsigned long long)digest);
  free(pixels);
  api->session_destroy(session);
  api->model_destroy(model);
  api->context_destroy(context);
  return 0;
}

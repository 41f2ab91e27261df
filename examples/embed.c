/* One image from a prompt, in C.
 *
 *     embed_c MODEL PROMPT OUT.png      MODEL: a bundle's folder, or a model's name such as tiny
 *
 * $ARCFLOW_ONNXRUNTIME names libonnxruntime.so where the loader does not find it by itself.
 */
#include <arcflow/arcflow.h>
#include <stdio.h>
#include <stdlib.h>

static const ArcflowApi* api;

/* Ends the program with the message where a call failed. */
static void require(ArcflowStatus* status) {
  if (status == NULL) return;
  fprintf(stderr, "error: %s\n", api->status_message(status));
  api->status_destroy(status);
  exit(2);
}

static int32_t on_step(void* user, const ArcflowStep* step) {
  (void)user;
  printf("evaluation %u of %u: sigma %.3f to %.3f\n", step->index + 1, step->total, step->sigma_from, step->sigma_to);
  return 0; /* Anything else would end the request. */
}

int main(int argc, char** argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: %s MODEL PROMPT OUT.png\n", argv[0]);
    return 2;
  }
  api = arcflow_get_api(ARCFLOW_API_VERSION);
  if (api == NULL) return 2; /* A library that does not have this version. */

  ArcflowContext* context = NULL;
  require(api->context_create(NULL, &context));
  ArcflowModelOptions options = ARCFLOW_INIT(ArcflowModelOptions);
  options.bundle = argv[1];
  ArcflowModel* model = NULL; /* Share it between threads ... */
  require(api->model_open(context, &options, &model));
  ArcflowSession* session = NULL; /* ... and give each a session. */
  require(api->session_create(model, NULL, &session));

  ArcflowRequest request = ARCFLOW_INIT(ArcflowRequest);
  request.prompts = (const char* const*)&argv[2];
  request.prompt_count = 1;
  request.on_step = on_step;
  ArcflowShape shape = ARCFLOW_INIT(ArcflowShape);
  require(api->model_shape(model, &request, &shape));
  ArcflowOutput output = ARCFLOW_INIT(ArcflowOutput);
  output.rgb8 = malloc(shape.rgb8_bytes);
  output.rgb8_bytes = shape.rgb8_bytes;
  if (output.rgb8 == NULL) return 2;
  require(api->session_generate(session, &request, &output));

  ArcflowBytes *settings = NULL, *png = NULL;
  require(api->describe_image(model, &request, 0, &settings));
  require(api->encode_png(output.rgb8, shape.width, shape.height, (const char*)api->bytes_data(settings), &png));
  FILE* file = fopen(argv[3], "wb");
  size_t written = file == NULL ? 0 : fwrite(api->bytes_data(png), 1, api->bytes_size(png), file);
  if (file == NULL || fclose(file) != 0 || written != api->bytes_size(png)) {
    fprintf(stderr, "error: cannot write %s\n", argv[3]);
    return 2;
  }
  printf("%s: %u x %u px in %.3f s\n", argv[3], shape.width, shape.height, output.total_seconds);

  api->bytes_destroy(png);
  api->bytes_destroy(settings);
  free(output.rgb8);
  api->session_destroy(session);
  api->model_destroy(model);
  api->context_destroy(context);
  return 0;
}

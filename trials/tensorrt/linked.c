/* The functions that NVIDIA's Python bindings of TensorRT 11 are linked with, passed on to TensorRT-RTX, which is
   loaded before. Compiled three times, with CORE, PLUGIN and PARSER; see library.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stdint.h>

#define REAL(type, name) ((type)dlsym(dlopen(LIBRARY, RTLD_NOW | RTLD_NOLOAD), name))

#ifdef CORE
#define LIBRARY "libtensorrt_rtx.so.1"
static int32_t version(void) { return REAL(int32_t (*)(void), "getInferLibVersion")(); }
void *createInferBuilder_INTERNAL(void *logger, int32_t bindings)
{
    return (void)bindings, REAL(void *(*)(void *, int32_t), "createInferBuilder_INTERNAL")(logger, version());
}
void *createInferRuntime_INTERNAL(void *logger, int32_t bindings)
{
    return (void)bindings, REAL(void *(*)(void *, int32_t), "createInferRuntime_INTERNAL")(logger, version());
}
void *createInferRefitter_INTERNAL(void *engine, void *logger, int32_t bindings)
{
    return (void)bindings,
           REAL(void *(*)(void *, void *, int32_t), "createInferRefitter_INTERNAL")(engine, logger, version());
}
void *getPluginRegistry(void) { return REAL(void *(*)(void), "getPluginRegistry")(); }
void *getBuilderPluginRegistry(int32_t capability)
{
    return REAL(void *(*)(int32_t), "getBuilderPluginRegistry")(capability);
}
#endif

#ifdef PLUGIN
bool initLibNvInferPlugins(void *logger, const char *names) { return (void)logger, (void)names, true; }
#endif

#ifdef PARSER
#define LIBRARY "libtensorrt_onnxparser_rtx.so.1"
int32_t getNvOnnxParserVersion(void) { return REAL(int32_t (*)(void), "getNvOnnxParserVersion")(); }
void *createNvOnnxParser_INTERNAL(void *network, void *logger, int bindings)
{
    return (void)bindings, REAL(void *(*)(void *, void *, int), "createNvOnnxParser_INTERNAL")(
                               network, logger, getNvOnnxParserVersion());
}
void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *logger, int bindings)
{
    return (void)bindings, REAL(void *(*)(void *, void *, int), "createNvOnnxParserRefitter_INTERNAL")(
                               refitter, logger, getNvOnnxParserVersion());
}
#endif

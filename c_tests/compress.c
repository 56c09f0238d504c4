/* Compressors, codecs that a program registers, and the deduplicating store. */
#include "check.h"
#include <math.h>
#include <quantum_memory.h>

enum { N = 200000 };
static double numbers[N], back[N];

static qmem_compressor_t *compressor(const char *algorithm, qmem_element_t element, double tolerance) {
  qmem_compressor_config_t config;
  memset(&config, 0, sizeof config);
  config.algorithm = algorithm;
  config.element = element;
  config.tolerance = tolerance;
  config.chunk_size = 1 << 18;
  return qmem_compressor_create(&config);
}

static void round_trips(void) {
  static const char *const names[] = {"none", "lz4", "zstd", "snappy", "shuffle-lz4", "pco", "amplitude"};
  for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
    int lossy = strcmp(names[k], "amplitude") == 0;
    qmem_compressor_t *c = compressor(names[k], lossy ? QMEM_ELEMENT_C128 : QMEM_ELEMENT_F64, lossy ? 1e-2 : 0);
    size_t bound = qmem_compress_bound(c, sizeof numbers), written = 0, size = 0;
    unsigned char *packed = (unsigned char *)malloc(bound);
    CHECK(c != NULL && bound > sizeof numbers && packed != NULL);
    STATUS(MEMORY_STATUS_OK, qmem_compress(c, numbers, sizeof numbers, packed, bound, &written));
    CHECK(written <= bound);
    STATUS(MEMORY_STATUS_OK, qmem_decompressed_size(packed, written, &size));
    CHECK(size == sizeof numbers);
    memset(back, 0xAA, sizeof back);
    STATUS(MEMORY_STATUS_OK, qmem_decompress(c, packed, written, back, sizeof back, &size));
    CHECK(size == sizeof numbers);
    if (lossy) {
      double norm = 0, error = 0;
      for (size_t i = 0; i < N; i++) {
        norm += numbers[i] * numbers[i];
        error += (numbers[i] - back[i]) * (numbers[i] - back[i]);
      }
      CHECK(error <= 1e-4 * norm && written * 7.5 < sizeof numbers);
    } else {
      CHECK(memcmp(numbers, back, sizeof back) == 0);
    }
    packed[written / 2] ^= 4;
    FAILS(MEMORY_STATUS_CORRUPT, "checksum", qmem_decompress(c, packed, written, back, sizeof back, &size));
    packed[written / 2] ^= 4;
    FAILS(MEMORY_STATUS_LIMIT, "dst", qmem_decompress(c, packed, written, back, sizeof back - 1, &size));
    FAILS(MEMORY_STATUS_LIMIT, "20 bytes", qmem_compress(c, numbers, sizeof numbers, packed, 20, &written));
    /* Nothing at all is something. */
    STATUS(MEMORY_STATUS_OK, qmem_compress(c, NULL, 0, packed, bound, &written));
    STATUS(MEMORY_STATUS_OK, qmem_decompress(c, packed, written, NULL, 0, &size));
    CHECK(size == 0);
    free(packed);
    qmem_compressor_destroy(c);
  }
}

static void bad_arguments(void) {
  qmem_compressor_config_t good, config;
  size_t size = 0;
  char text[64] = "QMEMCMP1"; /* zeros follow */
  qmem_compressor_t *c = compressor("lz4", QMEM_ELEMENT_BYTES, 0);
  REFUSED("config", qmem_compressor_create(NULL));
  memset(&good, 0, sizeof good);
  REFUSED("algorithm", qmem_compressor_create(&good));
  good.algorithm = "lz4";
#define BAD(field, value, word) (config = good, config.field = value, REFUSED(word, qmem_compressor_create(&config)))
  BAD(algorithm, "gzip", "gzip");
  BAD(algorithm, "jpeg2000", "JPEG 2000");
  BAD(algorithm, "amplitude", "tolerance");
  BAD(level, 13, "level");
  BAD(chunk_size, 100, "chunk_size");
  BAD(threads, 257, "threads");
  BAD(element, (qmem_element_t)5, "element");
  BAD(tolerance, 0.1, "tolerance");
  BAD(tolerance, -1, "tolerance");
  BAD(quality, 50, "quality");
  BAD(width, 1, "width");
  BAD(height, 1, "height");
  BAD(components, 3, "components");
  BAD(reserved[3], 1, "reserved[3]");
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "c is NULL", qmem_compress(NULL, text, 1, text, 1, &size));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "src is NULL", qmem_compress(c, NULL, 1, text, sizeof text, &size));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "dst is NULL", qmem_compress(c, text, 1, NULL, 1, &size));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "written is NULL", qmem_compress(c, text, 1, text, 1, NULL));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "out is NULL", qmem_decompressed_size(text, sizeof text, NULL));
  FAILS(MEMORY_STATUS_CORRUPT, "begins with", qmem_decompressed_size(text, 10, &size));
  FAILS(MEMORY_STATUS_CORRUPT, "checksum", qmem_decompressed_size(text, sizeof text, &size));
  FAILS(MEMORY_STATUS_CORRUPT, "QMEMCMP1", qmem_decompressed_size(numbers, sizeof numbers, &size));
  CHECK(qmem_compress_bound(NULL, 1) == 0 && qmem_compress_bound(c, (size_t)-1) == (size_t)-1);
  qmem_compressor_destroy(c);
  qmem_compressor_destroy(NULL);
}

/* A codec of ours: counts its calls, turns bits over, and leaves the last byte away if it is the first one's twin. */
static size_t invert_bound(size_t size, void *user) { return user == numbers ? size : 0; }
static memory_status_t invert(const void *src, size_t size, void *dst, size_t cap, size_t *written, void *user) {
  const unsigned char *from = (const unsigned char *)src;
  unsigned char *to = (unsigned char *)dst;
  if (user != numbers || cap < size || size < 2 || from[0] != from[size - 1])
    return MEMORY_STATUS_DEVICE;
  for (size_t i = 0; i + 1 < size; i++)
    to[i] = (unsigned char)~from[i];
  *written = size - 1;
  return MEMORY_STATUS_OK;
}
static memory_status_t revert(const void *src, size_t size, void *dst, size_t cap, size_t *written, void *user) {
  unsigned char *to = (unsigned char *)dst;
  if (user != numbers || cap != size + 1)
    return MEMORY_STATUS_DEVICE;
  for (size_t i = 0; i < size; i++)
    to[i] = (unsigned char)~((const unsigned char *)src)[i];
  to[size] = to[0];
  *written = cap;
  return MEMORY_STATUS_OK;
}

static void registered(void) {
  qmem_codec_t codec = {invert_bound, invert, revert, numbers}, part = codec;
  unsigned char data[5000], packed[6000], again[5000];
  size_t written = 0, size = 0;
  qmem_compressor_t *c;
  REFUSED("turned", compressor("turned", QMEM_ELEMENT_BYTES, 0));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "zstd", qmem_compressor_register("zstd", &codec));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "name", qmem_compressor_register("", &codec));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "codec is NULL", qmem_compressor_register("turned", NULL));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "algorithm is NULL", qmem_compressor_register(NULL, &codec));
  part.decompress = NULL;
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "decompress", qmem_compressor_register("turned", &part));
  STATUS(MEMORY_STATUS_OK, qmem_compressor_register("turned", &codec));
  c = compressor("turned", QMEM_ELEMENT_BYTES, 0);
  CHECK(c != NULL);
  for (size_t i = 0; i < sizeof data; i++)
    data[i] = (unsigned char)(i * i >> 3);
  data[sizeof data - 1] = data[0];
  STATUS(MEMORY_STATUS_OK, qmem_compress(c, data, sizeof data, packed, sizeof packed, &written));
  STATUS(MEMORY_STATUS_OK, qmem_decompress(c, packed, written, again, sizeof again, &size));
  CHECK(size == sizeof data && memcmp(data, again, sizeof data) == 0);
  data[0] ^= 1;
  FAILS(MEMORY_STATUS_ABORTED, "turned", qmem_compress(c, data, sizeof data, packed, sizeof packed, &written));
  qmem_compressor_destroy(c);
}

static void deduplication(void) {
  qmem_dedup_t *d = qmem_dedup_create(0, NULL);
  qmem_dedup_stats_t stats;
  uint64_t first = 0, second = 0, third = 0;
  size_t written = 0;
  REFUSED("block_size", qmem_dedup_create(63, NULL));
  REFUSED("sha1", qmem_dedup_create(0, "sha1"));
  STATUS(MEMORY_STATUS_OK, qmem_dedup_put(d, numbers, sizeof numbers, &first));
  STATUS(MEMORY_STATUS_OK, qmem_dedup_put(d, numbers, sizeof numbers, &second));
  STATUS(MEMORY_STATUS_OK, qmem_dedup_put(d, NULL, 0, &third));
  CHECK(first != 0 && second != first && third != 0);
  STATUS(MEMORY_STATUS_OK, qmem_dedup_get_stats(d, &stats));
  CHECK(stats.bytes_in == 2 * sizeof numbers && stats.bytes_unique == sizeof numbers && stats.dedup_ratio == 2.0);
  CHECK(fabs(stats.space_saved_gb - (double)sizeof numbers / 1e9) < 1e-15);
  STATUS(MEMORY_STATUS_OK, qmem_dedup_remove(d, first));
  FAILS(MEMORY_STATUS_NOT_FOUND, "id", qmem_dedup_remove(d, first));
  memset(back, 0, sizeof back);
  STATUS(MEMORY_STATUS_OK, qmem_dedup_get(d, second, back, sizeof back, &written));
  CHECK(written == sizeof numbers && memcmp(numbers, back, sizeof back) == 0);
  FAILS(MEMORY_STATUS_LIMIT, "dst", qmem_dedup_get(d, second, back, 10, &written));
  FAILS(MEMORY_STATUS_NOT_FOUND, "id", qmem_dedup_get(d, 999, back, sizeof back, &written));
  STATUS(MEMORY_STATUS_OK, qmem_dedup_get(d, third, NULL, 0, &written));
  CHECK(written == 0);
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "d is NULL", qmem_dedup_put(NULL, back, 1, &first));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "data is NULL", qmem_dedup_put(d, NULL, 1, &first));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "id is NULL", qmem_dedup_put(d, back, 1, NULL));
  FAILS(MEMORY_STATUS_INVALID_ARGUMENT, "stats is NULL", qmem_dedup_get_stats(d, NULL));
  STATUS(MEMORY_STATUS_OK, qmem_dedup_remove(d, second));
  STATUS(MEMORY_STATUS_OK, qmem_dedup_get_stats(d, &stats));
  CHECK(stats.bytes_in == 0 && stats.bytes_unique == 0 && stats.dedup_ratio == 1.0 && stats.space_saved_gb == 0);
  qmem_dedup_destroy(d);
  qmem_dedup_destroy(NULL);
}

int main(void) {
  unsigned seed = 1;
  for (size_t i = 0; i < N; i++) {
    double sum = 0;
    for (int k = 0; k < 12; k++) {
      seed = seed * 1664525u + 1013904223u;
      sum += (double)(seed >> 8) / (1 << 24) - 0.5;
    }
    numbers[i] = sum;
  }
  round_trips();
  bad_arguments();
  registered();
  deduplication();
  return finish();
}

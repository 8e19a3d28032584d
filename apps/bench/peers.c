/** @file peers.c
 *  @brief Talking to the peers' program, one line at a time. */
#include "bench/peers.h"
#include "bench/timing.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PATIENCE = 300 /* seconds to wait for an answer: kernels may be compiled on first use */ };

/* ------------------------------------------------------------------- lines */

static nsa_status lost(peers *p, const char *why) {
    if (p->pid) {
        kill(p->pid, SIGKILL); /* it may hang */
        peers_stop(p);
    }
    return nsa_fail(NSA_ERR_UNSUPPORTED, "the peers' program %s", why);
}

static nsa_status send_line(peers *p, const char *text) {
    for (size_t left = strlen(text); left;) {
        ssize_t n = write(p->to, text, left);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return lost(p, "has ended");
        text += n;
        left -= (size_t)n;
    }
    return NSA_OK;
}

/* Read until there is a whole line; *end is its newline. */
static nsa_status read_line(peers *p, char **end) {
    const double start = bench_now();
    while (!(*end = p->used ? memchr(p->line, '\n', p->used) : NULL)) {
        struct pollfd wait = {.fd = p->from, .events = POLLIN};
        if (p->used + 1 >= p->capacity) {
            size_t capacity = p->capacity ? 2 * p->capacity : 4096;
            char *more = capacity > 1 << 20 ? NULL : realloc(p->line, capacity);
            if (!more)
                return lost(p, "answered with more than a line");
            p->line = more;
            p->capacity = capacity;
        }
        const double left = PATIENCE - (bench_now() - start);
        const int ready = left > 0 ? poll(&wait, 1, (int)(1e3 * left) + 1) : 0;
        if (ready < 0 && errno == EINTR)
            continue;
        if (ready <= 0)
            return lost(p, "did not answer");
        ssize_t n = read(p->from, p->line + p->used, p->capacity - 1 - p->used);
        if (n <= 0)
            return lost(p, "has ended");
        p->used += (size_t)n;
    }
    return NSA_OK;
}

static const char *text_of(const cJSON *from, const char *key) {
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(from, key));
    return text ? text : "";
}

/* -1 if there is no such number. */
static double number_of(const cJSON *from, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(from, key);
    return cJSON_IsNumber(item) ? item->valuedouble : -1;
}

/* Send a request, which is freed, and get its answer, to be freed with cJSON_Delete(). */
static nsa_status request_answer(peers *p, cJSON *request, cJSON **answer) {
    char *text = request ? cJSON_PrintUnformatted(request) : NULL, *end = NULL;
    cJSON_Delete(request);
    *answer = NULL;
    nsa_status status = text ? NSA_OK : nsa_fail(NSA_ERR_MEMORY, "no memory for a request");
    if (!status && !p->pid)
        status = nsa_fail(NSA_ERR_UNSUPPORTED, "the peers' program has ended");
    status = status ? status : send_line(p, text);
    status = status ? status : send_line(p, "\n");
    status = status ? status : read_line(p, &end);
    cJSON_free(text);
    if (status)
        return status;
    *answer = cJSON_ParseWithLength(p->line, (size_t)(end - p->line));
    p->used -= (size_t)(end + 1 - p->line);
    memmove(p->line, end + 1, p->used);
    if (!cJSON_IsObject(*answer))
        status = lost(p, "answered with something that is no JSON object");
    else if (text_of(*answer, "wrong")[0])
        status = nsa_fail(NSA_ERR_INPUT, "%.200s", text_of(*answer, "wrong"));
    else if (text_of(*answer, "error")[0])
        status = nsa_fail(NSA_ERR_UNSUPPORTED, "%.200s", text_of(*answer, "error"));
    if (status) {
        cJSON_Delete(*answer);
        *answer = NULL;
    }
    return status;
}

static cJSON *request_of(const char *op, int id) {
    cJSON *request = cJSON_CreateObject();
    cJSON_AddStringToObject(request, "op", op);
    if (id >= 0)
        cJSON_AddNumberToObject(request, "id", id);
    return request;
}

/* ----------------------------------------------------------- start and stop */

static nsa_status spawn(peers *p, const char *command) {
    int in[2], out[2];
    if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC))
        return nsa_fail(NSA_ERR_IO, "no pipe: %s", strerror(errno));
    signal(SIGPIPE, SIG_IGN); /* write() reports a closed pipe */
    p->pid = fork();
    if (!p->pid) {
        dup2(in[0], STDIN_FILENO);
        dup2(out[1], STDOUT_FILENO);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    p->to = in[1];
    p->from = out[0];
    if (p->pid > 0)
        return NSA_OK;
    p->pid = 0;
    return nsa_fail(NSA_ERR_IO, "no process: %s", strerror(errno));
}

static void note_backend(peers *p, const cJSON *item) {
    peer *b = &p->list[p->count];
    if (p->count == PEERS_MAX || !text_of(item, "name")[0])
        return;
    *b = (peer){.sparse = number_of(item, "sparse") > 0};
    snprintf(b->name, sizeof b->name, "%s", text_of(item, "name"));
    b->device = strcmp(text_of(item, "device"), "gpu") ? BENCH_ON_CPU : BENCH_ON_GPU;
    b->arith = strcmp(text_of(item, "arith"), "bfloat16") ? NSA_FLOAT32 : NSA_BFLOAT16;
    for (int pass = 0; pass < BENCH_PASSES; pass++)
        b->pass[pass] = strstr(text_of(item, "passes"), bench_pass_name((bench_pass)pass)) != NULL;
    p->count++;
}

nsa_status peers_start(peers *p, const char *command, const bench_options *o) {
    cJSON *answer = NULL, *request = request_of("hello", -1);
    const cJSON *item;
    *p = (peers){.to = -1, .from = -1};
    cJSON_AddNumberToObject(request, "threads", (double)o->threads);
    cJSON_AddNumberToObject(request, "gpu", o->device[BENCH_ON_GPU]);
    nsa_status status = spawn(p, command);
    if (status)
        cJSON_Delete(request);
    else
        status = request_answer(p, request, &answer);
    cJSON_ArrayForEach(item, cJSON_GetObjectItemCaseSensitive(answer, "backends"))
        note_backend(p, item);
    const char *absent = text_of(answer, "absent");
    snprintf(p->about, sizeof p->about, "%.250s%s%.230s",
             status ? nsa_last_error() : text_of(answer, "about"), absent[0] ? "; not there: " : "",
             absent);
    cJSON_Delete(answer);
    return status;
}

void peers_stop(peers *p) {
    if (p->to >= 0)
        close(p->to); /* the end of its input */
    if (p->from >= 0)
        close(p->from);
    if (p->pid)
        waitpid(p->pid, NULL, 0);
    free(p->line);
    p->to = p->from = -1;
    p->pid = 0;
    p->line = NULL;
    p->used = p->capacity = 0;
}

/* -------------------------------------------------------------------- runs */

nsa_status peers_open(peers *p, const peer *which, const workload *w, bench_row *row, int *id,
                      double *first) {
    const nsa_config *c = &w->cfg;
    const struct {
        const char *key;
        int64_t value;
    } numbers[] = {{"B", w->B},          {"T", w->T},           {"Hq", c->q_heads},
                   {"Hkv", c->kv_heads}, {"dk", c->qk_dim},     {"dv", c->v_dim},
                   {"l", c->cmp_block},  {"d", c->cmp_stride},  {"l2", c->slc_block},
                   {"n", c->slc_count},  {"init", c->slc_init}, {"local", c->slc_local},
                   {"w", c->window}};
    cJSON *answer, *request = request_of("open", -1);
    cJSON_AddStringToObject(request, "backend", which->name);
    cJSON_AddStringToObject(request, "pass", bench_pass_name(w->pass));
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        cJSON_AddNumberToObject(request, numbers[i].key, (double)numbers[i].value);
    nsa_status status = request_answer(p, request, &answer);
    if (status)
        return status;
    *id = (int)number_of(answer, "id");
    *first = number_of(answer, "first");
    snprintf(row->checked, sizeof row->checked, "%s", text_of(answer, "checked"));
    cJSON_Delete(answer);
    return *id >= 0 && *first > 0 ? NSA_OK : lost(p, "answered without id and first");
}

nsa_status peers_time(peers *p, int id, double *seconds) {
    cJSON *answer;
    nsa_status status = request_answer(p, request_of("time", id), &answer);
    if (status)
        return status;
    *seconds = number_of(answer, "seconds");
    cJSON_Delete(answer);
    return *seconds > 0 ? NSA_OK : lost(p, "answered without seconds");
}

void peers_close(peers *p, int id) {
    cJSON *answer = NULL;
    if (p->pid)
        (void)request_answer(p, request_of("close", id), &answer);
    cJSON_Delete(answer);
}

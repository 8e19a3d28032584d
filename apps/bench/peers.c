/** @file peers.c
 *  @brief Other libraries' attention, timed by a separate program; docs/measuring.md says how. */
#include "bench/contender.h"

#include <cjson/cJSON.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PATIENCE = 300000 /* ms to wait for an answer: kernels may be compiled on first use */ };

static nsa_status lost(peers *p, const char *why) {
    if (p->pid) {
        kill(p->pid, SIGKILL); /* it may hang */
        peers_stop(p);
    }
    return nsa_fail(NSA_ERR_UNSUPPORTED, "the peers' program %s", why);
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
    char *text = cJSON_PrintUnformatted(request), *line = NULL;
    size_t capacity = 0;
    struct pollfd wait = {.fd = p->pid ? fileno(p->from) : -1, .events = POLLIN};
    const char *problem = NULL;
    if (!p->pid || fprintf(p->to, "%s\n", text ? text : "") < 0 || fflush(p->to))
        problem = "has ended";
    else if (poll(&wait, 1, PATIENCE) <= 0)
        problem = "did not answer";
    else if (getline(&line, &capacity, p->from) <= 0)
        problem = "has ended";
    *answer = problem ? NULL : cJSON_Parse(line);
    if (!problem && !cJSON_IsObject(*answer))
        problem = "answered with something that is no JSON object";
    cJSON_Delete(request);
    cJSON_free(text);
    free(line);
    const char *wrong = text_of(*answer, "wrong"), *error = text_of(*answer, "error");
    nsa_status status = problem    ? lost(p, problem)
                        : wrong[0] ? nsa_fail(NSA_ERR_INPUT, "%.200s", wrong)
                        : error[0] ? nsa_fail(NSA_ERR_UNSUPPORTED, "%.200s", error)
                                   : NSA_OK;
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

/* Without pipes or a process p->pid stays 0, and the first request says that it has ended. */
static void spawn(peers *p, const char *command) {
    int in[2], out[2];
    if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC))
        return;
    signal(SIGPIPE, SIG_IGN); /* fflush() reports a closed pipe */
    p->pid = fork();
    if (!p->pid) {
        dup2(in[0], STDIN_FILENO);
        dup2(out[1], STDOUT_FILENO);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    p->to = fdopen(in[1], "w");
    p->from = fdopen(out[0], "r");
    p->pid = p->pid > 0 && p->to && p->from ? p->pid : 0;
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
    const cJSON *item;
    *p = (peers){0};
    spawn(p, command);
    cJSON *answer, *request = request_of("hello", -1);
    cJSON_AddNumberToObject(request, "threads", (double)o->threads);
    cJSON_AddNumberToObject(request, "gpu", o->device[BENCH_ON_GPU]);
    nsa_status status = request_answer(p, request, &answer);
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
    if (p->to)
        fclose(p->to); /* the end of its input */
    if (p->from)
        fclose(p->from);
    if (p->pid)
        waitpid(p->pid, NULL, 0);
    p->to = p->from = NULL;
    p->pid = 0;
}

nsa_status peers_open(contender *c, const workload *w) {
    static const char *const keys[] = {"B", "T",  "Hq", "Hkv",  "dk",    "dv", "l",
                                       "d", "l2", "n",  "init", "local", "w"};
    const nsa_config *f = &w->cfg;
    const int64_t values[] = {w->B,        w->T,         f->q_heads,    f->kv_heads,  f->qk_dim,
                              f->v_dim,    f->cmp_block, f->cmp_stride, f->slc_block, f->slc_count,
                              f->slc_init, f->slc_local, f->window};
    cJSON *answer, *request = request_of("open", -1);
    cJSON_AddStringToObject(request, "backend", c->peer->name);
    cJSON_AddStringToObject(request, "pass", bench_pass_name(w->pass));
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++)
        cJSON_AddNumberToObject(request, keys[i], (double)values[i]);
    nsa_status status = request_answer(c->program, request, &answer);
    c->peer_id = (int)number_of(answer, "id");
    c->first = number_of(answer, "first");
    snprintf(c->row->checked, sizeof c->row->checked, "%s", text_of(answer, "checked"));
    cJSON_Delete(answer);
    const int complete = c->peer_id >= 0 && c->first > 0;
    return status || complete ? status : lost(c->program, "answered without id and first");
}

nsa_status peers_time(const contender *c, double *seconds) {
    cJSON *answer;
    nsa_status status = request_answer(c->program, request_of("time", c->peer_id), &answer);
    *seconds = number_of(answer, "seconds");
    cJSON_Delete(answer);
    return status || *seconds > 0 ? status : lost(c->program, "answered without seconds");
}

void peers_close(const contender *c) {
    cJSON *answer = NULL;
    if (c->program->pid)
        (void)request_answer(c->program, request_of("close", c->peer_id), &answer);
    cJSON_Delete(answer);
}

/* An engine that costs next to nothing, for measuring what stands in front of it.
 *
 * One thread, epoll, HTTP/1.1 with keep-alive and pipelining. It speaks as vLLM does: /health, /version, /v1/models,
 * /v1/load_lora_adapter, /v1/unload_lora_adapter, /v1/chat/completions and /v1/completions, streamed and not. The words
 * are made up; sizes, fields and the way the bytes are cut are vLLM's: an answer of 790 bytes, or 64 events of about
 * 230 bytes, each in a chunk and in a write of its own.
 *
 * Beside vLLM's: POST /pace/N sets N microseconds between two events of a stream (0: as fast as possible, but the
 * streams take turns), and GET /counts tells what has been sent.
 *
 *   engine [--port N] [--model NAME] [--pace MICROSECONDS]        prints "listening on PORT" once it does
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    EVENTS = 64,                  /* events of a stream that carry a token */
    WHOLE_BYTES = 790,            /* body of an answer that is not streamed */
    NAME_MAX_BYTES = 128,
    PATH_MAX_BYTES = 1024,
    MODELS_MAX = 256,
    CONNECTIONS_MAX = 16384,
    BODY_MAX_BYTES = 1 << 20,
    HEAD_MAX_BYTES = 64 << 10,
    ID_DIGITS = 16,
    BLOCKED_NS = 100000,          /* rest of a stream whose reader is slow */
};

/* Bytes that are sent again and again, with the answer's id patched in. */
struct cast {
    char *bytes;
    int length;
    int id_at; /* -1: none */
};

struct model {
    char name[NAME_MAX_BYTES];
    char root[PATH_MAX_BYTES];
    struct cast whole[2];              /* chat, completions */
    struct cast events[2][EVENTS + 1]; /* the last one is the usage */
};

struct connection {
    int fd;
    char *in;
    size_t in_length, in_capacity;
    char *out; /* what the socket did not take */
    size_t out_length, out_sent, out_capacity;
    int waits_for_room;
    /* the stream under way, if `streaming` */
    int streaming, endpoint, next_event, wants_usage;
    uint64_t id, due_ns;
    struct model *model;
    struct connection *before, *after; /* in the queue of streams */
};

static struct model *models[MODELS_MAX]; /* the first is the base */
static int model_count;
static struct connection *connections[CONNECTIONS_MAX];
static struct connection queue = {.before = &queue, .after = &queue}; /* by due time */
static int poller;
static uint64_t pace_ns, answer_id;
static uint64_t wholes_sent, streams_sent, events_sent, streams_cut;

static const char *const WORDS[] = {" The", " item", " was", " returned", " within", " the", " window", ",",
                                    " with", " a", " receipt", ";", " approve", " under", " rule", " R3"};

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void *reserve(void *old, size_t bytes) {
    void *found = realloc(old, bytes);
    if (found == NULL) die("memory");
    return found;
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- what is sent ---------------------------------------------------------------------------------------------- */

static struct cast cast_of(const char *head, const char *body, const char *tail) {
    struct cast made;
    made.length = asprintf(&made.bytes, "%s%s%s", head, body, tail);
    if (made.length < 0) die("memory");
    char *id = strstr(made.bytes, "@ID@ID@ID@ID@ID@"); /* ID_DIGITS characters */
    made.id_at = id ? (int)(id - made.bytes) : -1;
    return made;
}

static struct cast event_of(const char *json) {
    char *body, head[32];
    int length = asprintf(&body, "data: %s\n\n", json);
    if (length < 0) die("memory");
    snprintf(head, sizeof head, "%x\r\n", (unsigned)length);
    struct cast made = cast_of(head, body, "\r\n");
    free(body);
    return made;
}

static const char *const ID_OF[] = {"chatcmpl-7d1f4a9c2b6e4c55@ID@ID@ID@ID@ID@", "cmpl-7d1f4a9c2b6e4c55@ID@ID@ID@ID@ID@"};
static const char *const USAGE = "\"usage\":{\"prompt_tokens\":231,\"total_tokens\":295,\"completion_tokens\":64,"
                                 "\"prompt_tokens_details\":null}";

/* `shift` makes an adapter's words others than the base model's, as a probe expects. */
static struct cast whole_of(const char *name, int endpoint, int shift) {
    static const char *const FORM[] = {
        "{\"id\":\"%s\",\"object\":\"chat.completion\",\"created\":1764031339,\"model\":\"%s\",\"choices\":[{\"index\":0,"
        "\"message\":{\"role\":\"assistant\",\"content\":\"%s\",\"refusal\":null,\"annotations\":null,\"audio\":null,"
        "\"function_call\":null,\"tool_calls\":[],\"reasoning\":null},\"logprobs\":null,\"finish_reason\":\"stop\","
        "\"stop_reason\":null,\"token_ids\":null}],\"service_tier\":null,\"system_fingerprint\":null,%s,"
        "\"prompt_logprobs\":null,\"prompt_token_ids\":null,\"kv_transfer_params\":null}",
        "{\"id\":\"%s\",\"object\":\"text_completion\",\"created\":1764031339,\"model\":\"%s\",\"choices\":[{\"index\":0,"
        "\"text\":\"%s\",\"logprobs\":null,\"finish_reason\":\"stop\",\"stop_reason\":null,\"token_ids\":null,"
        "\"prompt_logprobs\":null,\"prompt_token_ids\":null}],\"service_tier\":null,\"system_fingerprint\":null,%s,"
        "\"kv_transfer_params\":null}"};
    char text[WHOLE_BYTES + 1] = "", body[4 * WHOLE_BYTES], head[256];
    int length = snprintf(body, sizeof body, FORM[endpoint], ID_OF[endpoint], name, text, USAGE);
    for (int i = shift; length + (int)strlen(WORDS[i % 16]) <= WHOLE_BYTES; i++) {
        strcat(text, WORDS[i % 16]);
        length += (int)strlen(WORDS[i % 16]);
    }
    while (length++ < WHOLE_BYTES) strcat(text, ".");
    length = snprintf(body, sizeof body, FORM[endpoint], ID_OF[endpoint], name, text, USAGE);
    snprintf(head, sizeof head,
             "HTTP/1.1 200 OK\r\ndate: Tue, 25 Nov 2025 00:42:19 GMT\r\nserver: uvicorn\r\ncontent-length: %d\r\n"
             "content-type: application/json\r\n\r\n", length);
    return cast_of(head, body, "");
}

static struct cast token_of(const char *name, int endpoint, int number) {
    char body[1024];
    const char *end = number == EVENTS - 1 ? "\"stop\",\"stop_reason\":null" : "null";
    const char *word = WORDS[number % 16];
    if (endpoint == 1)
        snprintf(body, sizeof body,
                 "{\"id\":\"%s\",\"object\":\"text_completion\",\"created\":1764031339,\"model\":\"%s\",\"choices\":[{"
                 "\"index\":0,\"text\":\"%s\",\"logprobs\":null,\"finish_reason\":%s,\"stop_reason\":null,"
                 "\"prompt_token_ids\":null,\"token_ids\":null}]}", ID_OF[1], name, word,
                 number == EVENTS - 1 ? "\"stop\"" : "null");
    else if (number == 0)
        snprintf(body, sizeof body,
                 "{\"id\":\"%s\",\"object\":\"chat.completion.chunk\",\"created\":1764031339,\"model\":\"%s\","
                 "\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
                 "\"finish_reason\":null}],\"prompt_token_ids\":null}", ID_OF[0], name);
    else
        snprintf(body, sizeof body,
                 "{\"id\":\"%s\",\"object\":\"chat.completion.chunk\",\"created\":1764031339,\"model\":\"%s\","
                 "\"choices\":[{\"index\":0,\"delta\":{\"content\":\"%s\"},\"logprobs\":null,\"finish_reason\":%s,"
                 "\"token_ids\":null}]}", ID_OF[0], name, word, end);
    return event_of(body);
}

static struct cast usage_of(const char *name, int endpoint) {
    char body[1024];
    snprintf(body, sizeof body,
             "{\"id\":\"%s\",\"object\":\"%s\",\"created\":1764031339,\"model\":\"%s\",\"choices\":[],%s}",
             ID_OF[endpoint], endpoint ? "text_completion" : "chat.completion.chunk", name, USAGE);
    return event_of(body);
}

static void copy_text(char *to, const char *from, size_t capacity) { snprintf(to, capacity, "%s", from); }

static struct model *find_model(const char *name) {
    for (int i = 0; i < model_count; i++)
        if (strcmp(models[i]->name, name) == 0) return models[i];
    return NULL;
}

static void add_model(const char *name, const char *root) {
    struct model *model = find_model(name);
    if (model != NULL) {
        copy_text(model->root, root, sizeof model->root);
        return;
    }
    if (model_count == MODELS_MAX) return;
    model = reserve(NULL, sizeof *model);
    copy_text(model->name, name, sizeof model->name);
    copy_text(model->root, root, sizeof model->root);
    for (int endpoint = 0; endpoint < 2; endpoint++) {
        model->whole[endpoint] = whole_of(model->name, endpoint, model_count > 0 ? 3 : 0);
        for (int i = 0; i < EVENTS; i++) model->events[endpoint][i] = token_of(model->name, endpoint, i);
        model->events[endpoint][EVENTS] = usage_of(model->name, endpoint);
    }
    models[model_count++] = model;
}

/* The name goes; the answers cast for it stay, since a stream may still be sending them. */
static void forget_model(const char *name) {
    for (int i = 1; i < model_count; i++)
        if (strcmp(models[i]->name, name) == 0) {
            models[i] = models[--model_count];
            return;
        }
}

/* ---- sending --------------------------------------------------------------------------------------------------- */

static void watch(struct connection *connection, int for_room) {
    if (connection->waits_for_room == for_room) return;
    connection->waits_for_room = for_room;
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | (for_room ? EPOLLOUT : 0u), .data.ptr = connection};
    epoll_ctl(poller, EPOLL_CTL_MOD, connection->fd, &event);
}

static void keep(struct connection *connection, const char *bytes, size_t length) {
    if (connection->out_length + length > connection->out_capacity) {
        connection->out_capacity = 2 * (connection->out_length + length);
        connection->out = reserve(connection->out, connection->out_capacity);
    }
    memcpy(connection->out + connection->out_length, bytes, length);
    connection->out_length += length;
    watch(connection, 1);
}

static void send_bytes(struct connection *connection, const char *bytes, size_t length) {
    ssize_t sent = 0;
    if (connection->out_length == 0) {
        sent = send(connection->fd, bytes, length, MSG_NOSIGNAL);
        if (sent < 0) sent = 0; /* a broken connection is found when it is read */
    }
    if ((size_t)sent < length) keep(connection, bytes + sent, length - (size_t)sent);
}

static void send_cast(struct connection *connection, const struct cast *cast, uint64_t id) {
    static const char DIGITS[] = "0123456789abcdef";
    if (cast->id_at >= 0)
        for (int i = ID_DIGITS - 1; i >= 0; i--, id >>= 4) cast->bytes[cast->id_at + i] = DIGITS[id & 15];
    send_bytes(connection, cast->bytes, (size_t)cast->length);
}

static void send_json(struct connection *connection, const char *status, const char *body) {
    char head[256];
    int length = snprintf(head, sizeof head,
                          "HTTP/1.1 %s\r\nserver: uvicorn\r\ncontent-length: %zu\r\ncontent-type: application/json\r\n\r\n",
                          status, strlen(body));
    struct cast cast = cast_of(head, body, "");
    (void)length;
    send_cast(connection, &cast, 0);
    free(cast.bytes);
}

static void enqueue(struct connection *connection, uint64_t due_ns) {
    struct connection *before = queue.before;
    while (before != &queue && before->due_ns > due_ns) before = before->before;
    connection->due_ns = due_ns;
    connection->before = before;
    connection->after = before->after;
    before->after->before = connection;
    before->after = connection;
}

static void dequeue(struct connection *connection) {
    if (connection->after == NULL) return;
    connection->before->after = connection->after;
    connection->after->before = connection->before;
    connection->before = connection->after = NULL;
}

static void begin_stream(struct connection *connection, struct model *model, int endpoint, int wants_usage) {
    static const char HEAD[] =
        "HTTP/1.1 200 OK\r\ndate: Tue, 25 Nov 2025 00:42:19 GMT\r\nserver: uvicorn\r\n"
        "content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
    connection->streaming = 1;
    connection->model = model;
    connection->endpoint = endpoint;
    connection->wants_usage = wants_usage;
    connection->next_event = 0;
    connection->id = ++answer_id;
    /* Streams that begin together don't go on in step: each has an offset of its own within the pace. */
    uint64_t offset = pace_ns ? connection->id * 0x9e3779b97f4a7c15u % pace_ns : 0;
    send_bytes(connection, HEAD, sizeof HEAD - 1);
    enqueue(connection, now_ns() + offset);
}

static void next_event(struct connection *connection, uint64_t now) {
    static const char DONE[] = "e\r\ndata: [DONE]\n\n\r\n";
    int last = EVENTS + (connection->wants_usage ? 1 : 0);
    if (connection->out_length > 0) { /* the reader is slow: this stream waits, as one of vLLM's would */
        enqueue(connection, now + (pace_ns ? pace_ns : BLOCKED_NS));
        return;
    }
    if (connection->next_event < last) {
        send_cast(connection, &connection->model->events[connection->endpoint][connection->next_event++], connection->id);
        events_sent++;
        enqueue(connection, now + (pace_ns ? pace_ns : 1)); /* later than now: the next turn's */
        return;
    }
    send_bytes(connection, DONE, sizeof DONE - 1);
    send_bytes(connection, "0\r\n\r\n", 5);
    connection->streaming = 0;
    streams_sent++;
}

/* ---- reading a body -------------------------------------------------------------------------------------------- */

struct asked {
    char model[NAME_MAX_BYTES], name[NAME_MAX_BYTES], path[PATH_MAX_BYTES];
    int stream, wants_usage;
};

static const char *skip_space(const char *at, const char *end) {
    while (at < end && (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t')) at++;
    return at;
}

/* After the closing quote of the text that begins at `at`. */
static const char *skip_text(const char *at, const char *end) {
    for (at++; at < end && *at != '"'; at++)
        if (*at == '\\') at++;
    return at < end ? at + 1 : end;
}

static const char *skip_value(const char *at, const char *end) {
    if (at < end && *at == '"') return skip_text(at, end);
    int depth = 0;
    while (at < end) {
        if (*at == '"') {
            at = skip_text(at, end);
            continue;
        }
        if (*at == '{' || *at == '[') depth++;
        if (*at == '}' || *at == ']') {
            if (depth == 0) return at;
            depth--;
        }
        if (*at == ',' && depth == 0) return at;
        at++;
    }
    return end;
}

static void take_text(char *to, size_t capacity, const char *from, const char *end) {
    size_t length = end - from >= 2 && *from == '"' ? (size_t)(end - from - 2) : 0;
    if (length >= capacity) length = capacity - 1;
    memcpy(to, from + 1, length);
    to[length] = 0;
}

/* The top level keys that matter; nothing is checked that vLLM would check. */
static void read_body(struct asked *asked, const char *at, const char *end) {
    asked->model[0] = asked->name[0] = asked->path[0] = 0;
    asked->stream = asked->wants_usage = 0;
    at = skip_space(at, end);
    if (at == end || *at != '{') return;
    at++;
    while ((at = skip_space(at, end)) < end && *at == '"') {
        const char *key = at + 1;
        at = skip_text(at, end);
        size_t key_length = (size_t)(at - key) - 1;
        at = skip_space(at, end);
        if (at == end || *at != ':') return;
        const char *value = skip_space(at + 1, end);
        at = skip_value(value, end);
#define IS(text) (key_length == sizeof(text) - 1 && memcmp(key, text, sizeof(text) - 1) == 0)
        if (IS("model")) take_text(asked->model, sizeof asked->model, value, at);
        else if (IS("lora_name")) take_text(asked->name, sizeof asked->name, value, at);
        else if (IS("lora_path")) take_text(asked->path, sizeof asked->path, value, at);
        else if (IS("stream")) asked->stream = end - value >= 4 && memcmp(value, "true", 4) == 0;
        else if (IS("stream_options")) {
            const char *wish = memmem(value, (size_t)(at - value), "\"include_usage\"", 15);
            if (wish != NULL) {
                wish = skip_space(wish + 15, at);
                wish = skip_space(wish < at ? wish + 1 : at, at);
                asked->wants_usage = at - wish >= 4 && memcmp(wish, "true", 4) == 0;
            }
        }
#undef IS
        at = skip_space(at, end);
        if (at == end || *at != ',') return;
        at++;
    }
}

/* ---- answering ------------------------------------------------------------------------------------------------- */

static void answer(struct connection *connection, int endpoint, const char *body, const char *end) {
    struct asked asked;
    read_body(&asked, body, end);
    struct model *model = find_model(asked.model);
    if (model == NULL) {
        char text[512];
        snprintf(text, sizeof text,
                 "{\"error\":{\"message\":\"The model `%s` does not exist.\",\"type\":\"NotFoundError\","
                 "\"param\":\"model\",\"code\":404}}", asked.model);
        send_json(connection, "404 Not Found", text);
        return;
    }
    if (asked.stream) {
        begin_stream(connection, model, endpoint, asked.wants_usage);
        return;
    }
    send_cast(connection, &model->whole[endpoint], ++answer_id);
    wholes_sent++;
}

static void list_models(struct connection *connection) {
    static char body[MODELS_MAX * (NAME_MAX_BYTES + PATH_MAX_BYTES + 512)];
    size_t length = (size_t)sprintf(body, "{\"object\":\"list\",\"data\":[");
    for (int i = 0; i < model_count; i++) {
        char parent[NAME_MAX_BYTES + 2] = "null";
        if (i > 0) snprintf(parent, sizeof parent, "\"%s\"", models[0]->name);
        length += (size_t)sprintf(body + length,
                                  "%s{\"id\":\"%s\",\"object\":\"model\",\"created\":1764031339,\"owned_by\":\"vllm\","
                                  "\"root\":\"%s\",\"parent\":%s,\"max_model_len\":%s,\"permission\":[]}",
                                  i > 0 ? "," : "", models[i]->name, models[i]->root, parent, i > 0 ? "null" : "8192");
    }
    sprintf(body + length, "]}");
    send_json(connection, "200 OK", body);
}

static void tell_counts(struct connection *connection) {
    char body[256];
    snprintf(body, sizeof body, "{\"wholes\":%llu,\"streams\":%llu,\"events\":%llu,\"streams_cut\":%llu}",
             (unsigned long long)wholes_sent, (unsigned long long)streams_sent, (unsigned long long)events_sent,
             (unsigned long long)streams_cut);
    send_json(connection, "200 OK", body);
}

static void change_adapters(struct connection *connection, int load, const char *body, const char *end) {
    struct asked asked;
    read_body(&asked, body, end);
    if (asked.name[0] == 0) {
        send_json(connection, "400 Bad Request", "{\"error\":{\"message\":\"lora_name is missing\",\"code\":400}}");
        return;
    }
    if (load) add_model(asked.name, asked.path);
    else forget_model(asked.name);
    send_json(connection, "200 OK", load ? "\"Success: LoRA adapter added successfully.\""
                                         : "\"Success: LoRA adapter removed successfully.\"");
}

static void respond(struct connection *connection, const char *line, const char *body, const char *end) {
#define ASKS(text) (strncmp(line, text " ", sizeof(text)) == 0)
    if (ASKS("POST /v1/chat/completions")) answer(connection, 0, body, end);
    else if (ASKS("POST /v1/completions")) answer(connection, 1, body, end);
    else if (ASKS("GET /health")) send_json(connection, "200 OK", "");
    else if (ASKS("GET /version")) send_json(connection, "200 OK", "{\"version\":\"0.32.0\"}");
    else if (ASKS("GET /v1/models")) list_models(connection);
    else if (ASKS("POST /v1/load_lora_adapter")) change_adapters(connection, 1, body, end);
    else if (ASKS("POST /v1/unload_lora_adapter")) change_adapters(connection, 0, body, end);
    else if (ASKS("GET /counts")) tell_counts(connection);
    else if (strncmp(line, "POST /pace/", 11) == 0) {
        pace_ns = strtoull(line + 11, NULL, 10) * 1000u;
        send_json(connection, "200 OK", "{}");
    } else send_json(connection, "404 Not Found", "{\"detail\":\"Not Found\"}");
#undef ASKS
}

static void hang_up(struct connection *connection) {
    if (connection->streaming) streams_cut++;
    dequeue(connection);
    connections[connection->fd] = NULL;
    close(connection->fd);
    free(connection->in);
    free(connection->out);
    free(connection);
}

/* Answers the requests that have come whole, one after the other; a stream holds back those behind it. */
static int serve(struct connection *connection) {
    size_t used = 0;
    while (!connection->streaming && connection->in_length > used) {
        char *start = connection->in + used;
        size_t have = connection->in_length - used;
        char *blank = memmem(start, have, "\r\n\r\n", 4);
        if (blank == NULL) {
            if (have > HEAD_MAX_BYTES) return 0;
            break;
        }
        *blank = 0; /* the head is text from here on */
        const char *length_at = strcasestr(start, "\r\ncontent-length:");
        size_t length = length_at ? strtoul(length_at + 17, NULL, 10) : 0;
        if (length > BODY_MAX_BYTES || strcasestr(start, "\r\ntransfer-encoding:") != NULL) {
            send_json(connection, "411 Length Required", "{}");
            return 0;
        }
        size_t head = (size_t)(blank - start) + 4;
        if (have < head + length) {
            *blank = '\r';
            break;
        }
        respond(connection, start, start + head, start + head + length);
        used += head + length;
    }
    connection->in_length -= used;
    if (used > 0) memmove(connection->in, connection->in + used, connection->in_length);
    return 1;
}

/* ---- the loop -------------------------------------------------------------------------------------------------- */

static void take_in(struct connection *connection) {
    for (;;) {
        if (connection->in_capacity - connection->in_length < 16384) {
            if (connection->in_capacity > 2 * (size_t)(BODY_MAX_BYTES + HEAD_MAX_BYTES)) {
                hang_up(connection);
                return;
            }
            connection->in_capacity = 2 * connection->in_capacity + 32768;
            connection->in = reserve(connection->in, connection->in_capacity);
        }
        size_t room = connection->in_capacity - connection->in_length - 1;
        ssize_t got = recv(connection->fd, connection->in + connection->in_length, room, 0);
        if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) {
            hang_up(connection);
            return;
        }
        if (got < 0) break;
        connection->in_length += (size_t)got;
        connection->in[connection->in_length] = 0;
        if ((size_t)got < room) break;
    }
    if (!serve(connection)) hang_up(connection);
}

static void flush(struct connection *connection) {
    ssize_t sent = send(connection->fd, connection->out + connection->out_sent,
                        connection->out_length - connection->out_sent, MSG_NOSIGNAL);
    if (sent < 0) return;
    connection->out_sent += (size_t)sent;
    if (connection->out_sent < connection->out_length) return;
    connection->out_sent = connection->out_length = 0;
    watch(connection, 0);
}

static void welcome(int door) {
    int fd;
    while ((fd = accept4(door, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        if (fd >= CONNECTIONS_MAX) {
            close(fd);
            continue;
        }
        int yes = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        struct connection *connection = reserve(NULL, sizeof *connection);
        memset(connection, 0, sizeof *connection);
        connection->fd = fd;
        connections[fd] = connection;
        struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = connection};
        if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) < 0) die("epoll");
    }
}

/* One event for each stream that is due; those that become due meanwhile have their turn in the next round. */
static void turn(void) {
    uint64_t now = now_ns();
    while (queue.after != &queue && queue.after->due_ns <= now) {
        struct connection *connection = queue.after;
        dequeue(connection);
        next_event(connection, now);
        if (!connection->streaming && connection->in_length > 0 && !serve(connection)) {
            hang_up(connection);
        }
    }
}

static int wait_for_events(struct epoll_event *events, int capacity) {
    if (queue.after == &queue) return epoll_wait(poller, events, capacity, -1);
    uint64_t now = now_ns(), due = queue.after->due_ns;
    if (due <= now) return epoll_wait(poller, events, capacity, 0);
    struct timespec rest = {.tv_sec = (time_t)((due - now) / 1000000000u), .tv_nsec = (long)((due - now) % 1000000000u)};
    return epoll_pwait2(poller, events, capacity, &rest, NULL);
}

static int listen_on(int port) {
    int door = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), yes = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(door, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(door, (struct sockaddr *)&address, sizeof address) < 0) die("bind");
    if (listen(door, 4096) < 0) die("listen");
    socklen_t size = sizeof address;
    getsockname(door, (struct sockaddr *)&address, &size);
    printf("listening on %d\n", ntohs(address.sin_port));
    fflush(stdout);
    return door;
}

int main(int count, char **arguments) {
    int port = 0;
    const char *name = "smollm2-135m-instruct";
    for (int i = 1; i + 1 < count; i += 2) {
        if (strcmp(arguments[i], "--port") == 0) port = atoi(arguments[i + 1]);
        else if (strcmp(arguments[i], "--model") == 0) name = arguments[i + 1];
        else if (strcmp(arguments[i], "--pace") == 0) pace_ns = strtoull(arguments[i + 1], NULL, 10) * 1000u;
        else {
            fprintf(stderr, "unknown option %s: use --port, --model or --pace\n", arguments[i]);
            return 2;
        }
    }
    struct rlimit files = {CONNECTIONS_MAX, CONNECTIONS_MAX};
    setrlimit(RLIMIT_NOFILE, &files);
    answer_id = now_ns();
    add_model(name, name);
    poller = epoll_create1(EPOLL_CLOEXEC);
    int door = listen_on(port);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[256];
    if (poller < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, door, &event) < 0) die("epoll");
    for (;;) {
        int found = wait_for_events(events, 256);
        for (int i = 0; i < found; i++) {
            struct connection *connection = events[i].data.ptr;
            if (connection == NULL) {
                welcome(door);
                continue;
            }
            if (events[i].events & EPOLLOUT) flush(connection);
            if (events[i].events & ~(unsigned)EPOLLOUT) take_in(connection);
        }
        turn();
    }
}

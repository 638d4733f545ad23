/*
 * init: PID 1 of one instance, from configure to clean.
 *
 * It is host root, outside the instance's cgroup and user namespace, and holds the other
 * namespaces alive. It starts the application and sessions (child.c), reaps, relays the log
 * (log.c, pipe.c), and tells the end in exit.json and to whoever follows (application.c). It
 * serves its own socket (loop.c, verbs.c) and goes on whatever becomes of launcher, CLI or agent.
 * One thread, one poll loop. Nothing is opened by a path of the host, and of the instance's files
 * only its /proc and its terminals.
 */
#ifndef NATIVERT_INIT_H
#define NATIVERT_INIT_H

#include <linux/filter.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>

#define ARRAY_SIZE(array) (sizeof(array) / sizeof((array)[0]))
#define NS_PER_S 1000000000LL
#define NS_PER_MS 1000000LL

/* ---- text.c: what is sent and written: JSON in a buffer ---- */

/* A packet's size; no message of ours comes near it, since names in reports are cut. */
#define MAX_PACKET (64 << 10)

struct text {
	size_t length;
	char data[MAX_PACKET];
};

void text_open(struct text *text);
void text_close(struct text *text);
void put_raw(struct text *text, const char *key, const char *json);
void put_string(struct text *text, const char *key, const char *bytes);
void put_integer(struct text *text, const char *key, int64_t number);
void put_integer_or_null(struct text *text, const char *key, int64_t number, bool known);
void put_bool(struct text *text, const char *key, bool truth);
void put_seconds(struct text *text, const char *key, int64_t ns);
void put_open(struct text *text, const char *key);
void put_end(struct text *text);
/* Write *number* in decimal digits at *at*; return the end, which is not terminated. */
char *digits(char *at, uint64_t number, int width);

/* ---- utf8.c ---- */

/* Return how many bytes the UTF-8 sequence at *at* has, 0 if it is none. */
size_t utf8_sequence(const unsigned char *at, const unsigned char *end);

/* ---- json.c: what is received ---- */

enum kind {
	JSON_NULL,
	JSON_FALSE,
	JSON_TRUE,
	JSON_INTEGER,
	JSON_NUMBER,     /* with a fraction or an exponent, or beyond 64 bits */
	JSON_TEXT,
	JSON_NOT_A_NAME, /* text with a NUL or half a surrogate pair: no name for the kernel */
	JSON_LIST,
	JSON_OBJECT,
};

struct json {
	enum kind kind;
	uint32_t nodes;   /* of this value and all in it, which follow it */
	uint32_t entries; /* of a list or an object; in an object a key and a value each */
	union {
		int64_t integer;
		const char *text; /* bytes as the kernel takes them, terminated */
	};
};

struct json *json_parse(char *data, size_t length);
const struct json *json_get(const struct json *object, const char *key);
const struct json *json_next(const struct json *value);
bool json_true(const struct json *object, const char *key);
bool json_integer(const struct json *object, const char *key, int64_t low, int64_t high,
		  int64_t *number);
const char *json_text(const struct json *object, const char *key);

/* ---- protocol.c: packets ---- */

#define MAX_FDS 16

struct packet {
	struct json *message;
	char *large;
	int fds[MAX_FDS];
	size_t count;
};

/* What failed: errno 0 is none, path NULL is none. */
struct failure {
	const char *step;
	int number;
	const char *path;
	const char *text;
};

enum received { RECEIVED_GONE = -1, RECEIVED_NOTHING = 0, RECEIVED_MESSAGE = 1 };

enum received packet_receive(int sock, struct packet *packet);
void packet_free(struct packet *packet);
int packet_send(int sock, const struct text *text, const int *fds, size_t count);
void put_failure(struct text *text, const struct failure *failure);
int fail(struct failure *failure, int number, const char *path, const char *text);

/* ---- system.c: calls that need more than one line ---- */

int64_t now_ns(clockid_t clock);
int64_t start_time(pid_t pid);
void cloexec(int fd);
void close_fd(int *fd);
int send_signal(int pidfd, int number);
char *slurp(int fd, size_t *length);

/* ---- program.c: what is to be started ---- */

#define MAX_LIMITS 16

struct limit {
	const char *name;
	int resource;
	struct rlimit value;
};

/* Text in it belongs to the packet that it was read from. */
struct program {
	char **argv;
	char **env;
	char *env_text;
	char *candidate; /* room for each path that is tried */
	const char *path;
	const char *cwd;
	uid_t uid;
	gid_t gid;
	gid_t *groups;
	size_t group_count;
	mode_t umask;
	struct limit limits[MAX_LIMITS];
	size_t limit_count;
	int oom_score_adj;
};

int program_read(struct program *program, const struct json *message, struct failure *failure);
void program_free(struct program *program);

/* ---- cgroup.c: where programs are started, when it was removed from outside ---- */

int cgroup_replace(const struct packet *packet, const struct json *cgroup, struct failure *failure);

/* ---- child.c: from fork to exec ---- */

#define MAX_TASKS 16

/* What every program of the instance is started into; opened before the root changed. */
struct surroundings {
	int tasks[MAX_TASKS];
	size_t task_count;
	int into; /* a cgroup2 directory, or -1 */
	int user;
	uint32_t id_base;
	struct sock_fprog seccomp;
	int last_capability;
};

/* One write of a pipe: it is there as a whole or not at all (PIPE_BUF, pipe(7)). */
struct report {
	int number;
	char step[32];
	char path[3072];
	char text[512];
};

enum reported { REPORT_NONE_YET, REPORT_EXECUTED, REPORT_FAILED };

struct started {
	pid_t pid;
	int pidfd;
	int report;
};

int child_join_cgroups(void);
int child_oom_score_adj(int value);
pid_t child_fork(bool inside, struct started *started, struct failure *failure);
_Noreturn void child_failed(int report, const struct failure *failure);
int child_start(const struct program *program, const int stdio[3], bool terminal,
		struct started *started, struct failure *failure);
enum reported child_report(int fd, struct report *report, struct failure *failure);

/* ---- log.c, pipe.c: the application's output ---- */

#define LOG_CHUNK (64 << 10)
#define LOG_MAX_LINE (16 << 10)

struct log {
	int directory;
	int64_t max_bytes;
	int files;
	int fd;
	int64_t size;
	int64_t lost_bytes;
	int64_t told_bytes;
};

void log_init(struct log *log, int directory, int64_t max_bytes, int files);
void log_write(struct log *log, const char *stream, const char *data, size_t length, bool partial);

struct pipe {
	struct log *log;
	const char *stream;
	int fd;
	int writer;
	size_t rest;       /* bytes of a line whose end has not come, at the start of data */
	int64_t flush_at;  /* when they are logged as they are, by CLOCK_MONOTONIC */
	int64_t resume_at; /* before that it is not read */
	int64_t since;
	double credit;
	double reads;
	char data[LOG_MAX_LINE + LOG_CHUNK];
};

int pipe_open(struct pipe *pipe, struct log *log, const char *stream);
bool pipe_relay(struct pipe *pipe);
int pipe_drain(struct pipe *pipe);
void pipe_flush(struct pipe *pipe);
void pipe_finish(struct pipe *pipe);
void pipe_close(struct pipe *pipe);

/* ---- evidence.c: the kernel's counters of the instance's cgroup ---- */

struct evidence {
	int oom;
	int peak;
	int cpu;
	int pids;
};

struct counters {
	int64_t oom_kills;
	int64_t oom_events;  /* -1: the kernel does not count it */
	int64_t pids_events; /* -1: as before */
	int64_t cpu_ns;      /* -1: as before */
};

void evidence_read(const struct evidence *evidence, struct counters *counters);
void counters_begin(const struct evidence *evidence, struct counters *counters);
int64_t evidence_peak_bytes(const struct evidence *evidence);

/* ---- application.c: one run ---- */

enum state { IDLE, STARTING, RUNNING, ENDING };

struct application {
	enum state state;
	int64_t number;
	struct started started;
	int64_t start;
	int64_t started_ns;
	bool main_ended;
	int status;
	int asked_signal; /* -1: none */
	int64_t asked_ns;
	struct counters before;
	struct pipe pipes[2];
	int poll_report;
	int poll_pipes[2];
	pid_t restores; /* 0, or what CRIU, which *started* is until then, makes of the images */
};

int application_start(int64_t number, const struct program *program, struct failure *failure);
int application_restore(int64_t number, const struct program *owner, pid_t pid,
			const struct packet *packet, struct failure *failure);
int application_adopt(struct failure *failure);
void application_status(struct text *text);
void application_reaped(int status);
void application_never(const struct failure *failure);
void application_finish(void);

/* ---- session.c: programs beside the application ---- */

/* Sessions are refused long before connections, so that stop and release always get in. */
#define MAX_SESSIONS 64

struct connection {
	int sock; /* -1: free */
	bool follows;
	struct session *session;
	int poll;
};

struct session {
	struct connection *connection; /* NULL: nobody is left to hear of it */
	struct started started;        /* pid 0: free */
	bool executed;
	bool failed;
	bool stays; /* CRIU must not be stopped half-way, whoever has gone */
	int poll;
};

void session_exec(struct connection *connection, const struct packet *packet,
		  struct failure *failure);
void session_report(struct session *session);
bool session_reaped(pid_t pid, int status);
void session_hang_up(struct session *session);
void session_dump(struct connection *connection, const struct packet *packet,
		  struct failure *failure);
bool session_stays(void);

/* ---- checkpoint.c: CRIU ---- */

int criu_start(const struct packet *packet, const int *fds, size_t count, const int *oom_score_adj,
	       struct started *started, struct failure *failure);
int criu_numbers_from(int last_pid, pid_t pid);
void criu_forget(void);

/* ---- loop.c, verbs.c ---- */

#define MAX_CONNECTIONS 512

/* All that this process knows. */
struct init {
	char *version;
	char *boot_id;
	int directory; /* where exit.json goes */
	int listener;
	int signals;
	struct surroundings around;
	struct evidence evidence;
	struct log log;
	struct application application;
	char *last; /* the last run's end as JSON, for who asks where there is no exit.json */
	struct connection *starter;
	struct connection connections[MAX_CONNECTIONS];
	size_t highest; /* no connection beyond it */
	size_t connected;
	struct session sessions[MAX_SESSIONS];
	size_t session_count;
};

extern struct init self;
/* For the message that is being made: it is sent before the next one is begun. */
extern struct text outgoing;

_Noreturn void loop(void);
void connection_send(struct connection *connection, const struct text *text, int fd);
void connection_drop(struct connection *connection);
void verb(struct connection *connection, const struct packet *packet);
void put_hello(struct text *text);
void application_report(void);
void application_restored(int status);
void kill_all(int number);
void tell_end(void);

#endif

/* The application under measurement: ends with code 0 at once on SIGTERM, also as PID 1,
 * and at once when it is given an argument. Linked statically, so that exec is quick and the
 * figures are the runtimes' own. */
#include <signal.h>
#include <unistd.h>

static void end(int number)
{
    (void)number;
    _exit(0);
}

int main(int argc, char **argv)
{
    (void)argv;
    signal(SIGTERM, end);
    while (argc == 1)
        pause();
    return 0;
}

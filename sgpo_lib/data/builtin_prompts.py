"""The builtin prompts: everyday topics crossed with forms of request.

A run without any data of its own needs prompts that a small chat model answers in one to three sentences, and
whose answers differ in sentiment: about half of the forms ask for trouble (complaints, risks, apologies), the
others for something neutral or pleasant, so that the gold judge's utility has room in both directions. The
module knows prompts only; splitting them and pairing them with answers is the business of
`sgpo_lib.data`.
"""

from typing import NamedTuple


class Topic(NamedTuple):
    """One everyday topic, said in each grammatical role that a form can ask for."""

    do: str  # infinitive without "to"
    doing: str  # the same as a gerund
    thing: str  # singular noun phrase with its article
    people: str  # plural noun without article
    fact: str  # a clause that can follow "why"
    trouble: str  # a clause: something went wrong, nobody here is to blame
    fault: str  # a clause: the speaker did wrong and owes an apology


FORMS = (
    "Give me one tip for {doing}.",
    "Give me two reasons to {do}.",
    "Give me two reasons not to {do}.",
    "What is the best part of {doing}?",
    "What is the hardest part of {doing}?",
    "What mistake do people often make when {doing}?",
    "Warn me about one risk of {doing}.",
    "Why do some people dislike {doing}?",
    "Write a short diary entry about {doing}.",
    "My friend is thinking about {doing}. What should I tell her?",
    "Is {doing} worth the effort? Answer in two sentences.",
    "Describe {thing} in two sentences.",
    "Write a two-line poem about {thing}.",
    "Tell me a short joke about {thing}.",
    "In two sentences, complain about {thing}.",
    "Find something nice to say about {thing}.",
    "How would you describe {thing} to a visitor from another planet?",
    "What do {people} complain about most?",
    "Write a short welcome message for a group of {people}.",
    "Write one encouraging sentence for {people} who have had a bad day.",
    "{Trouble}. Write a short, angry text message about it.",
    "{Trouble}. What would be a calm way to react?",
    "Imagine that {trouble}. How would people feel?",
    'Write a two-sentence story that starts with "{Trouble}."',
    "{fault}. Write a short apology for me.",
    "{fault}. How bad is that, honestly?",
    "Explain to a child why {fact}.",
)

# Three lines a topic: do | doing | thing, then people | fact, then trouble | fault.
_TOPICS = """
bake bread | baking bread | a loaf of homemade bread
home bakers | bread rises in the oven
the bakery sold out of bread before noon | I burned the bread for my friend's dinner

look after a houseplant | looking after a houseplant | a houseplant
plant lovers | plants need sunlight
the new plant was full of insects | I forgot to water my friend's plants

take the bus to work | taking the bus to work | a crowded city bus
bus drivers | some roads have a lane just for buses
the bus drove past without stopping | I missed the bus and was late for my friend's party

travel by train | traveling by train | a long train ride
train passengers | trains run on rails
the train was three hours late | I got on the wrong train and missed my cousin's wedding

fly to another country | flying to another country | a long flight
airline passengers | airplanes can stay in the air
the airline lost two suitcases | I booked our family flight for the wrong day

stay in a hotel | staying in a hotel | a small hotel
hotel guests | hotels wash the sheets so often
the hotel room was dirty | I lost the key to our hotel room

go camping | going camping | a camping trip
campers | stars are easier to see far from a city
the tent leaked all night | I forgot to pack our tent

hike up a mountain | hiking up a mountain | a steep mountain trail
hikers | it is colder on top of a mountain
the trail was closed without notice | I lost the map and led our group the wrong way

learn to swim | learning to swim | a swimming pool
swimmers | wood floats on water
the swimming pool was far too cold | I splashed water on a stranger's phone

ride a bicycle in the city | riding a bicycle in the city | a second-hand bicycle
cyclists | a moving bicycle does not fall over
the new bicycle broke on the first day | I scratched the bicycle my friend lent me

run a marathon | running a marathon | a pair of running shoes
runners | our hearts beat faster when we run
the race was canceled at the last minute | I overslept and let my running partner wait in the cold

join a gym | joining a gym | a busy gym
gym members | muscles get sore after exercise
the gym kept charging money after the membership ended | I dropped a weight on my friend's foot

try yoga | trying yoga | a yoga class
yoga teachers | slow breathing helps people calm down
the yoga class was far too loud | I snored during my friend's yoga class

play soccer | playing soccer | a soccer match
soccer fans | a soccer ball bounces
the team lost in the last minute | I broke my neighbor's window with a soccer ball

play chess | playing chess | a game of chess
chess players | a pawn is worth less than a queen in chess
the chess club closed for good | I cheated in a chess game against my brother

learn the guitar | learning the guitar | an old guitar
guitar players | a thick string makes a low sound
the new guitar arrived with a broken neck | I broke a string on my friend's guitar

practice the piano | practicing the piano | a grand piano
piano teachers | some music makes people feel sad
the piano was out of tune at the concert | I skipped the piano lesson my parents paid for

sing in a choir | singing in a choir | a community choir
singers | our voices sound different on recordings
the singer forgot the words | I sang loudly while my roommate was sleeping

go to a concert | going to a concert | a live concert
concert visitors | music sounds quieter from far away
the concert ended after twenty minutes | I lost the concert tickets my friend bought

paint a picture | painting a picture | a watercolor painting
painters | blue and yellow paint make green
the painting arrived with a hole in it | I spilled paint on my friend's carpet

take photographs at a wedding | taking photographs at a wedding | an old camera
photographers | shadows are longer in the evening
the camera stopped working during the wedding | I deleted the photographs of my friend's wedding

read more books | reading more books | a thick novel
book lovers | many fairy tales have a happy ending
the last page of the novel was missing | I spilled juice on a book my teacher lent me

use the public library | using the public library | a public library
librarians | people whisper in a library
the library closed an hour early | I lost a book from the school library

write a novel | writing a novel | an unfinished novel
writers | most stories have a villain
the publisher rejected the manuscript | I gave away the ending of my friend's story

write letters by hand | writing letters by hand | a handwritten letter
pen pals | a letter needs a stamp
the letter arrived six months late | I opened my neighbor's letter by mistake

watch movies at home | watching movies at home | a scary movie
movie fans | popcorn pops when it gets hot
the movie was boring and far too long | I told my friends how the movie ends

act in a school play | acting in a school play | a school play
actors | actors wear makeup on stage
the leading actor forgot his lines | I laughed at the saddest moment of my friend's play

visit a museum | visiting a museum | a science museum
museum guides | dinosaurs are no longer alive
the best room in the museum was closed | I touched a painting and set off the museum alarm

visit the zoo | visiting the zoo | a small city zoo
zookeepers | polar bears have thick fur
the animals at the zoo slept all day | I forgot to take my nephew to the zoo

adopt a dog | adopting a dog | a playful puppy
dog owners | dogs wag their tails
the dog next door barked all night | I let my neighbor's dog run away

live with a cat | living with a cat | a lazy cat
cat owners | cats see well in the dark
the cat scratched the new sofa | I stepped on my sister's cat

keep goldfish | keeping goldfish | a fish tank
aquarium owners | fish can breathe under water
the fish tank cracked overnight | I gave my brother's goldfish far too much food

watch birds | watching birds | a robin in the garden
bird watchers | some birds fly south in winter
a cat chased all the birds away | I broke my uncle's binoculars

grow vegetables | growing vegetables | a vegetable garden
gardeners | worms are good for the soil
snails ate all the lettuce | I stepped on my neighbor's tomato plants

cook dinner for friends | cooking dinner for friends | a bowl of soup
home cooks | onions make people cry
the soup was cold and salty | I served my guests chicken that was still raw

eat at a new restaurant | eating at a new restaurant | a family restaurant
waiters | hot food smells stronger than cold food
the waiter brought the wrong meal twice | I left the restaurant without paying my share

give up coffee | giving up coffee | a cup of coffee
coffee drinkers | coffee keeps people awake
the coffee was weak and cold | I spilled coffee on my boss's desk

drink tea every day | drinking tea every day | a cup of green tea
tea drinkers | sugar disappears in hot tea
the tea tasted like dish soap | I broke my grandmother's teapot

eat a healthy breakfast | eating a healthy breakfast | a big breakfast
hungry students | people are hungry in the morning
the milk for breakfast was sour | I forgot to buy milk for the family breakfast

give up meat | giving up meat | a vegetarian meal
vegetarians | vegetables are good for us
the vegetarian soup was full of bacon | I cooked a steak for a vegetarian friend

plan a birthday party | planning a birthday party | a birthday cake
party guests | people blow out candles on a cake
nobody came to the birthday party | I forgot my best friend's birthday

plan a wedding | planning a wedding | a small wedding
wedding guests | some people cry at weddings
it rained on the wedding cake | I spilled wine on the bride's dress

choose a gift for a coworker | choosing a gift for a coworker | a homemade gift
store clerks | people wrap presents in paper
the gift arrived broken | I gave my aunt's gift to someone else

prepare for a job interview | preparing for a job interview | a job interview
job seekers | people dress up for a job interview
the company never called back after the interview | I arrived late for a job interview

start a new job | starting a new job | a new job
office workers | most adults have to work
the boss canceled all vacations | I forgot to invite a new colleague to lunch

work from home | working from home | a home office
remote workers | video calls sometimes freeze
the internet failed during an important call | I fell asleep in a video call with a customer

lead a meeting | leading a meeting | a long meeting
managers | people yawn when they are bored
the meeting took three hours longer than planned | I forgot to send my team the report

give a speech | giving a speech | a short speech
public speakers | people get nervous in front of a crowd
the microphone stopped working during the speech | I made a rude joke in my speech

study for an exam | studying for an exam | a difficult exam
students | sleep helps us remember things
half of the class failed the exam | I lost the notes I borrowed from a classmate

learn a foreign language | learning a foreign language | a language course
language learners | people speak different languages
the language course was canceled | I mixed up two words and insulted my host

teach math | teaching math | a math lesson
math teachers | we cannot divide a number by zero
the math book was full of errors | I gave a student the wrong grade

save money | saving money | a savings account
bank customers | banks pay interest
the bank charged a hidden fee | I did not pay my cousin back on time

shop online | shopping online | an online store
online shoppers | stores lower their prices at the end of a season
the package arrived empty | I kept a package that belongs to my neighbor

buy a used car | buying a used car | a used car
car owners | cars need oil
the car broke down after one week | I dented my father's car

learn to drive | learning to drive | a driving lesson
driving instructors | cars must stop at a red light
the driving test was canceled for the third time | I drove over my neighbor's flowers

move to a new city | moving to a new city | a new apartment
new neighbors | homes cost more in big cities
the movers broke the mirror | I promised to help my friend move and did not come

live with a roommate | living with a roommate | a shared apartment
roommates | loud noise keeps us awake
the roommate never washed the dishes | I ate the last piece of my roommate's cake

clean the kitchen | cleaning the kitchen | a messy kitchen
house cleaners | soap removes grease
the dishwasher flooded the kitchen | I left a sink full of dirty dishes for my family

do the laundry | doing the laundry | a washing machine
laundry workers | wet clothes dry faster in the wind
the washing machine ruined a favorite shirt | I shrank my sister's sweater in the wash

fix a leaky faucet | fixing a leaky faucet | a leaky faucet
plumbers | water pipes can burst in winter
the plumber never showed up | I drilled a hole into my neighbor's wall

go to bed earlier | going to bed earlier | a comfortable mattress
night-shift workers | we need sleep
the neighbors played loud music until three in the morning | I woke up the baby with my loud music

go to the dentist | going to the dentist | a dental checkup
dentists | sugar is bad for our teeth
the dentist pulled the wrong tooth | I missed an appointment with my dentist

stay home with a cold | staying home with a cold | a bad cold
nurses | we sneeze
the pharmacy ran out of medicine | I went to work sick and gave everyone my cold

walk in the rain | walking in the rain | an umbrella
weather forecasters | a rainbow appears after the rain
the storm destroyed the garden fence | I lost my friend's umbrella

build a snowman | building a snowman | a snowy day
skiers | snow melts in the sun
the heating failed on the coldest day of the year | I hit my teacher with a snowball

spend a day at the beach | spending a day at the beach | a sandy beach
lifeguards | the sea is salty
the beach was covered with trash | I kicked sand into a stranger's lunch

go fishing | going fishing | a small fishing boat
people who fish | heavy ships can float
the engine died in the middle of the lake | I tipped over my uncle's boat

volunteer at an animal shelter | volunteering at an animal shelter | an animal shelter
volunteers | some animals are afraid of people
the animal shelter ran out of money | I did not show up for my shift at the animal shelter

recycle more at home | recycling more at home | a recycling bin
garbage collectors | plastic is bad for the ocean
the garbage was not collected for three weeks | I threw away my neighbor's new helmet

babysit for the neighbors | babysitting for the neighbors | a noisy toddler
babysitters | babies cry
the babysitter fell asleep on the job | I taught my niece a bad word

stay in touch with old friends | staying in touch with old friends | an old friendship
former classmates | friends sometimes argue
the class reunion was canceled | I did not call my oldest friend for a year

use a phone less often | using a phone less often | a new phone
teenagers | phones need to be charged
the new phone stopped working after two days | I dropped my friend's phone into a puddle

back up a computer | backing up a computer | an old laptop
computer programmers | computers get hot
the laptop crashed before the file was saved | I deleted my colleague's presentation

play video games | playing video games | a video game
gamers | a game gets easier with practice
the game froze just before the end | I deleted my brother's saved game

quit social media | quitting social media | a social media post
influencers | strangers on the internet are not always honest
a stranger left a rude comment | I posted an embarrassing photo of my friend

follow the news every day | following the news every day | a daily newspaper
journalists | bad news spreads quickly
the newspaper printed the wrong name | I got an important fact wrong in my article

get up at five in the morning | getting up at five in the morning | an alarm clock
early risers | the sun goes down in the evening
the alarm clock did not ring | I overslept and kept my colleagues waiting

get a haircut | getting a haircut | a new haircut
hairdressers | it does not hurt to cut our hair
the haircut was uneven | I laughed at my friend's haircut

learn to knit | learning to knit | a wool sweater
knitters | wool keeps us warm
the sweater fell apart after one wash | I lost the scarf my aunt knitted for me

take dance lessons | taking dance lessons | a dance class
dancers | people get dizzy when they spin
the dance teacher shouted at the class | I stepped on my dance partner's toes
"""


def _topics() -> list[Topic]:
    blocks = _TOPICS.strip().split("\n\n")
    return [Topic(*block.replace("\n", " | ").split(" | ")) for block in blocks]


def builtin_prompts() -> list[str]:
    """Return the builtin pool: every topic in every form.

    Returns
    -------
    list of str
        2,160 distinct single-turn requests of fewer than 30 words (80 topics, 27 forms), always in the same
        order: topic by topic. Neighbours share a topic, so shuffle before taking a part.

    Notes
    -----
    Written for this project; not taken from any data set.
    """
    return [
        form.format(**topic._asdict(), Trouble=topic.trouble[0].upper() + topic.trouble[1:])
        for topic in _topics()
        for form in FORMS
    ]


def builtin_forms() -> list[str]:
    """Return the form of each of `builtin_prompts()`, in their order: an element of `FORMS`."""
    return [form for _ in _topics() for form in FORMS]
